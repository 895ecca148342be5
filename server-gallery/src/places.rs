//! Places for connections: so many in all, and so many for each network, so that nobody takes them all.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::access::throttle::network;

/// Places that are left; as many networks are counted as there are places.
#[derive(Debug)]
pub(crate) struct Places {
    all: Arc<Semaphore>,
    of_network_max: usize,
    of_network: Mutex<HashMap<IpAddr, usize>>,
}

impl Places {
    pub(crate) fn new(all: usize, of_network_max: usize) -> Arc<Self> {
        Arc::new(Self { all: Arc::new(Semaphore::new(all)), of_network_max, of_network: Mutex::default() })
    }

    /// A place for one more from the network of this address, if there is one.
    pub(crate) fn take(self: &Arc<Self>, address: IpAddr) -> Option<Place> {
        let network = network(address);
        let place = self.all.clone().try_acquire_owned().ok()?;
        let mut of_network = self.lock();
        let count = of_network.entry(network).or_insert(0);
        if *count >= self.of_network_max {
            return None;
        }
        *count += 1;
        Some(Place { places: self.clone(), network, _place: place })
    }

    /// A place without a bound for its network: that of this machine may be a proxy for everybody.
    pub(crate) fn take_any(&self) -> Option<OwnedSemaphorePermit> {
        self.all.clone().try_acquire_owned().ok()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.of_network.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place that is taken, until it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    places: Arc<Places>,
    network: IpAddr,
    _place: OwnedSemaphorePermit,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut of_network = self.places.lock();
        if let Some(count) = of_network.get_mut(&self.network) {
            *count -= 1;
            if *count == 0 {
                of_network.remove(&self.network);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_network_does_not_take_every_place() {
        let places = Places::new(8, 4);
        for (here, beside, there) in
            [("192.0.2.1", "192.0.2.1", "192.0.2.2"), ("2001:db8::1", "2001:db8::ffff:1", "2001:db8:0:1::1")]
        {
            let [here, beside, there] = [here, beside, there].map(|address| address.parse().unwrap());
            let mut taken: Vec<_> = (0..4).map(|_| places.take(here).unwrap()).collect();
            assert!(places.take(beside).is_none() && places.take(there).is_some());
            taken.pop();
            assert!(places.take(beside).is_some());
        }
        assert!(places.lock().is_empty());
        assert_eq!(places.all.available_permits(), 8);
    }
}
