//! How long somebody who guessed wrong has to wait before the next guess is looked at.
//!
//! Failures are counted for each address, and for each device at each address. Not for a device alone: then anybody
//! could lock a device out by guessing for it. An address may stand for many devices behind one router, so it is
//! allowed more. The table is bounded, and forgets first what is oldest.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use glimpse_protocol::DeviceId;

/// Wrong passwords for one device from one address that cost nothing: a person mistypes.
const DEVICE_FREE: u32 = 3;

/// Wrong passwords from one address that cost nothing.
const ADDRESS_FREE: u32 = 20;

const WAIT_FIRST: Duration = Duration::from_secs(1);
const WAIT_LONGEST: Duration = Duration::from_mins(1);

/// After so long without a failure all is forgotten.
const FORGOTTEN_AFTER: Duration = Duration::from_mins(10);

/// Places in the table.
const ENTRIES_MAX: usize = 8192;

#[derive(Clone, PartialEq, Eq, Hash)]
enum Key {
    Address(IpAddr),
    Device(IpAddr, DeviceId),
}

impl Key {
    fn both(address: IpAddr, device: &DeviceId) -> [(Self, u32); 2] {
        let address = network(address);
        [(Self::Address(address), ADDRESS_FREE), (Self::Device(address, device.clone()), DEVICE_FREE)]
    }
}

/// One customer of a provider has 2^64 addresses of IPv6; their first half is what names the customer.
pub(crate) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64))),
        address @ IpAddr::V4(_) => address,
    }
}

struct Failures {
    count: u32,
    last: Instant,
    wait: Duration,
}

/// Who failed lately.
#[derive(Default)]
pub struct Throttle {
    entries: HashMap<Key, Failures>,
}

impl Throttle {
    /// Whether a guess from this address for this device is looked at now.
    pub fn allows(&self, address: IpAddr, device: &DeviceId, now: Instant) -> bool {
        Key::both(address, device).iter().all(|(key, _)| {
            self.entries.get(key).is_none_or(|failures| now.duration_since(failures.last) >= failures.wait)
        })
    }

    /// Counts a wrong guess.
    pub fn failed(&mut self, address: IpAddr, device: &DeviceId, now: Instant) {
        for (key, free) in Key::both(address, device) {
            if !self.entries.contains_key(&key) {
                self.make_room(now);
            }
            let failures =
                self.entries.entry(key).or_insert(Failures { count: 0, last: now, wait: Duration::ZERO });
            if now.duration_since(failures.last) >= FORGOTTEN_AFTER {
                failures.count = 0;
            }
            failures.count = failures.count.saturating_add(1);
            failures.last = now;
            failures.wait = match failures.count.checked_sub(free + 1) {
                None => Duration::ZERO,
                Some(doublings) => WAIT_FIRST.saturating_mul(1 << doublings.min(16)).min(WAIT_LONGEST),
            };
        }
    }

    /// Forgets a device's failures at an address; those of the address itself stay, because a guesser may own one
    /// device.
    pub fn succeeded(&mut self, address: IpAddr, device: &DeviceId) {
        self.entries.remove(&Key::Device(network(address), device.clone()));
    }

    fn make_room(&mut self, now: Instant) {
        if self.entries.len() < ENTRIES_MAX {
            return;
        }
        self.entries.retain(|_, failures| now.duration_since(failures.last) < FORGOTTEN_AFTER);
        if self.entries.len() >= ENTRIES_MAX {
            // An eighth at once, so that a flood does not look through the table for each of its guesses.
            let mut times: Vec<Instant> = self.entries.values().map(|failures| failures.last).collect();
            let (_, oldest, _) = times.select_nth_unstable(ENTRIES_MAX / 8);
            let oldest = *oldest;
            self.entries.retain(|_, failures| failures.last > oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::registry::tests::id;
    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const THERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));

    #[test]
    fn waits_double_up_to_their_bound_and_are_forgotten() {
        let (mut throttle, device) = (Throttle::default(), id("a"));
        let mut now = Instant::now();
        let mut waits = Vec::new();
        for _ in 0..12 {
            throttle.failed(HERE, &device, now);
            let waited = (0..=60).find(|s| throttle.allows(HERE, &device, now + Duration::from_secs(*s)));
            waits.push(waited.unwrap());
            now += Duration::from_mins(1);
        }
        assert_eq!(waits, [0, 0, 0, 1, 2, 4, 8, 16, 32, 60, 60, 60]);
        throttle.failed(HERE, &device, now + FORGOTTEN_AFTER);
        assert!(throttle.allows(HERE, &device, now + FORGOTTEN_AFTER));
    }

    #[test]
    fn guesses_from_elsewhere_do_not_lock_a_device_out() {
        let (mut throttle, now) = (Throttle::default(), Instant::now());
        for _ in 0..10 {
            throttle.failed(THERE, &id("a"), now);
        }
        assert!(!throttle.allows(THERE, &id("a"), now));
        assert!(throttle.allows(THERE, &id("b"), now), "others at that address are not its fault yet");
        assert!(throttle.allows(HERE, &id("a"), now));
        throttle.succeeded(THERE, &id("a"));
        assert!(throttle.allows(THERE, &id("a"), now));
    }

    #[test]
    fn an_address_that_tries_many_devices_waits_too() {
        let (mut throttle, now) = (Throttle::default(), Instant::now());
        for number in 0..=ADDRESS_FREE {
            throttle.failed(HERE, &id(&format!("d{number}")), now);
        }
        assert!(!throttle.allows(HERE, &id("fresh"), now));
        assert!(throttle.allows(HERE, &id("fresh"), now + WAIT_FIRST));
    }

    #[test]
    fn one_network_of_ipv6_is_one_address() {
        let (mut throttle, now) = (Throttle::default(), Instant::now());
        for host in 0..=ADDRESS_FREE {
            let address: IpAddr = format!("2001:db8:1:2::{host:x}").parse().unwrap();
            throttle.failed(address, &id("a"), now);
        }
        assert!(!throttle.allows("2001:db8:1:2:ffff::1".parse().unwrap(), &id("z"), now));
        assert!(throttle.allows("2001:db8:1:3::1".parse().unwrap(), &id("z"), now));
    }

    #[test]
    fn the_table_is_bounded() {
        let (mut throttle, start) = (Throttle::default(), Instant::now());
        for number in 0..3 * ENTRIES_MAX as u32 {
            let address = IpAddr::V4(std::net::Ipv4Addr::from_bits(number));
            throttle.failed(address, &id("a"), start + Duration::from_millis(number.into()));
            assert!(throttle.entries.len() <= ENTRIES_MAX);
        }
    }
}
