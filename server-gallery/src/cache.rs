//! Replies kept for repeats: the least recently used goes first, bounded in number and in bytes.

use std::collections::{BTreeMap, HashMap};

use glimpse_protocol::{DeviceId, QueryId};

use crate::matcher::Encoding;

/// All replies together; 100 matches with the longest ids and labels are about 25 KB, usual replies 1 KB.
const BYTES_MAX: usize = 16 << 20;

/// A query is the same when device, id and encoding are. Another device using the same id is another query: ids are
/// chosen by devices, and one must not read another's reply.
pub(crate) type Key = (DeviceId, QueryId, Encoding);

pub(crate) struct ReplyCache {
    replies: HashMap<Key, (u64, Vec<u8>)>,
    /// Keys by the time of their last use; the first is the oldest.
    by_use: BTreeMap<u64, Key>,
    uses: u64,
    bytes: usize,
    count_max: usize,
}

impl ReplyCache {
    pub(crate) fn new(count_max: usize) -> Self {
        Self { replies: HashMap::new(), by_use: BTreeMap::new(), uses: 0, bytes: 0, count_max }
    }

    pub(crate) fn get(&mut self, key: &Key) -> Option<Vec<u8>> {
        let (last_use, reply) = self.replies.get_mut(key)?;
        self.uses += 1;
        let key = self.by_use.remove(last_use)?;
        *last_use = self.uses;
        self.by_use.insert(self.uses, key);
        Some(reply.clone())
    }

    pub(crate) fn put(&mut self, key: Key, reply: Vec<u8>) {
        self.remove(&key);
        if self.count_max == 0 || reply.len() > BYTES_MAX {
            return;
        }
        self.uses += 1;
        self.bytes += reply.len();
        self.by_use.insert(self.uses, key.clone());
        self.replies.insert(key, (self.uses, reply));
        while self.replies.len() > self.count_max || self.bytes > BYTES_MAX {
            let Some(oldest) = self.by_use.first_key_value().map(|(_, key)| key.clone()) else { break };
            self.remove(&oldest);
        }
    }

    fn remove(&mut self, key: &Key) {
        if let Some((last_use, reply)) = self.replies.remove(key) {
            self.bytes -= reply.len();
            self.by_use.remove(&last_use);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(device: &str, id: u8) -> Key {
        (DeviceId::new(device).unwrap(), QueryId::from_bytes([id; 16]), Encoding::Cbor)
    }

    #[test]
    fn keeps_what_was_used_last() {
        let mut cache = ReplyCache::new(2);
        cache.put(key("a", 1), vec![1]);
        cache.put(key("a", 2), vec![2]);
        assert_eq!(cache.get(&key("a", 1)), Some(vec![1]));
        cache.put(key("a", 3), vec![3]);
        assert_eq!(cache.get(&key("a", 2)), None);
        assert_eq!(cache.get(&key("a", 1)), Some(vec![1]));
        assert_eq!(cache.get(&key("b", 1)), None, "another device's id is another query");
        assert_eq!((cache.replies.len(), cache.by_use.len(), cache.bytes), (2, 2, 2));
    }

    #[test]
    fn stays_within_its_bytes() {
        let mut cache = ReplyCache::new(1000);
        for id in 0..20 {
            cache.put(key("a", id), vec![0; BYTES_MAX / 10]);
        }
        assert!(cache.bytes <= BYTES_MAX && cache.replies.len() == 10);
        cache.put(key("a", 99), vec![0; BYTES_MAX + 1]);
        assert_eq!(cache.get(&key("a", 99)), None);
        cache.put(key("a", 19), vec![0; 5]);
        assert_eq!(cache.get(&key("a", 19)), Some(vec![0; 5]));
    }

    #[test]
    fn a_cache_of_nothing_keeps_nothing() {
        let mut cache = ReplyCache::new(0);
        cache.put(key("a", 1), vec![1]);
        assert_eq!(cache.get(&key("a", 1)), None);
    }
}
