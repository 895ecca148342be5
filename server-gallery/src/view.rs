//! One generation of the gallery, as queries see it: an index, and what has changed since it was made.
//!
//! An index is made of one generation and never changes; a view lays a small second index over it, of the images that were put
//! since, all compared exactly, and passes over those that were replaced or removed. Making the next view costs what has
//! changed, and not what there is. A query keeps the view that it began with: it sees one generation, whatever is written
//! meanwhile. Once much has changed a new index is made ([`crate::live`]).

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use glimpse_quantizer::expansion::normalize;
use glimpse_quantizer::{Codebook, Expansion};

use crate::catalogue::{Catalogue, Entry};
use crate::filter::Condition;
use crate::index::{BuildError, Filter, Hit, Index, SearchOptions};
use crate::store::{Committed, Features, Image, Meta, Snapshot, State, StoreError};

/// Conditions whose filters are remembered; one takes a bit an image, 125 KB in a gallery of a million.
const FILTERS_MAX: usize = 64;

/// How a query is answered.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QueryOptions {
    /// How the nearest images are looked for.
    pub search: SearchOptions,
    /// Search again with the query expanded by its nearest images. Similarities are then those with the expanded query.
    pub expansion: Option<Expansion>,
    /// A query whose nearest image is less similar than this gets no match.
    pub unknown_below: Option<f32>,
}

impl From<SearchOptions> for QueryOptions {
    /// Without expansion; every query is matched.
    fn from(search: SearchOptions) -> Self {
        Self { search, expansion: None, unknown_below: None }
    }
}

/// A generation of the gallery, ready to be searched from many threads.
pub struct View {
    base: Arc<Index>,
    delta: Delta,
    state: State,
    filters: Mutex<HashMap<Option<Condition>, Arc<Filters>>>,
}

/// What was put since the base was made, and which of the base's images it replaces or were removed.
#[derive(Default)]
struct Delta {
    put: BTreeMap<String, Arc<(Image, Vec<f32>)>>,
    /// Rows of the base, ascending.
    gone: Vec<u32>,
    /// Of `put`.
    index: Option<Index>,
}

/// A condition, by the rows of both indexes. `None` admits all.
struct Filters {
    base: Option<Filter>,
    delta: Option<Filter>,
}

/// Why there is no next view.
#[derive(Debug, thiserror::Error)]
pub enum ViewError {
    /// The store cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The changes cannot be indexed.
    #[error(transparent)]
    Build(#[from] BuildError),
}

impl std::fmt::Debug for View {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (generation, base) = (self.state.generation, self.base.state().generation);
        write!(f, "View(generation {generation}, {} images, index of {base})", self.len())
    }
}

impl View {
    /// The generation that an index was made of.
    pub fn of(index: Arc<Index>) -> Self {
        Self { state: index.state(), base: index, delta: Delta::default(), filters: Mutex::default() }
    }

    /// The view of a later generation. `None` where more than `changes_max` images have changed since this one, or it is not
    /// known which: then the index has to be made anew.
    ///
    /// # Errors
    /// When the store cannot be read, or is damaged where it has changed.
    pub fn advance(&self, to: &Committed, changes_max: usize) -> Result<Option<Self>, ViewError> {
        let Some(changed) = to.changed_since(&self.state, changes_max)? else { return Ok(None) };
        let mut put = self.delta.put.clone();
        let mut gone: Vec<u32> = self.delta.gone.clone();
        gone.extend(changed.iter().filter_map(|id| self.base.images().find(id)));
        gone.sort_unstable();
        gone.dedup();
        for id in changed {
            match to.get(&id)? {
                Some(entry) => put.insert(id, Arc::new(entry)),
                None => put.remove(&id),
            };
        }
        let index = if put.is_empty() { None } else { Some(self.index_of(&put, to)?) };
        let delta = Delta { put, gone, index };
        Ok(Some(Self { base: self.base.clone(), delta, state: to.state(), filters: Mutex::default() }))
    }

    fn index_of(
        &self,
        put: &BTreeMap<String, Arc<(Image, Vec<f32>)>>,
        of: &Committed,
    ) -> Result<Index, BuildError> {
        let images: Catalogue = put.values().map(|entry| &entry.0).collect();
        let features = put.values().flat_map(|entry| entry.1.iter().copied()).collect();
        let (meta, state) = (of.meta(), of.state());
        let snapshot = Snapshot { meta, state, images, features: Features::Memory(features) };
        // Kept as in the base, so that a photo has the same similarity in either; not where the base is augmented.
        Index::exact(snapshot, self.base.vectors().precision())
    }

    /// What the gallery is.
    pub fn meta(&self) -> Meta {
        Meta { generation: self.state.generation, ..self.base.meta() }
    }

    /// Which gallery, and which generation of it.
    pub const fn state(&self) -> State {
        self.state
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.base.len() - self.delta.gone.len() + self.delta.put.len()
    }

    /// Whether there is no image.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The index below the changes.
    pub const fn base(&self) -> &Arc<Index> {
        &self.base
    }

    /// Images that were put, replaced or removed since the index was made.
    pub fn changes(&self) -> usize {
        self.delta.put.len().max(self.delta.gone.len())
    }

    /// The codebook that reads and writes `pq` codes of messages, if there is one.
    pub fn codebook(&self) -> Option<&Codebook> {
        self.base.codebook()
    }

    /// An image by its id.
    pub fn image(&self, id: &str) -> Option<Entry<'_>> {
        let put =
            self.delta.index.as_ref().and_then(|index| Some(index.images().get(index.images().find(id)?)));
        put.or_else(|| {
            let row = self.base.images().find(id)?;
            self.delta.gone.binary_search(&row).is_err().then(|| self.base.images().get(row))
        })
    }

    /// All images, in the order of their ids.
    pub fn images(&self) -> impl Iterator<Item = Entry<'_>> {
        self.images_after(None)
    }

    /// All images whose ids are greater than one, or all, in the order of their ids.
    pub fn images_after(&self, id: Option<&str>) -> impl Iterator<Item = Entry<'_>> {
        let from = |images: &Catalogue| id.map_or(0, |id| images.after(id));
        let mut base = (from(self.base.images())..self.base.len() as u32)
            .filter(|row| self.delta.gone.binary_search(row).is_err())
            .map(|row| self.base.images().get(row))
            .peekable();
        let first = self.delta.index.as_ref().map_or(0, |index| from(index.images()));
        let put = self.delta.index.iter().flat_map(|index| index.images().iter());
        let mut put = put.skip(first as usize).peekable();
        std::iter::from_fn(move || match (base.peek(), put.peek()) {
            (Some(old), Some(new)) if new.id < old.id => put.next(),
            (None, _) => put.next(),
            _ => base.next(),
        })
    }

    /// Number of images that a condition admits.
    pub fn count(&self, condition: Option<&Condition>) -> usize {
        let filters = self.filters(condition);
        let delta = self.delta.index.as_ref().map_or(0, Index::len);
        filters.base.as_ref().map_or(self.base.len(), Filter::len)
            + filters.delta.as_ref().map_or(delta, Filter::len)
    }

    /// The images nearest to each of `queries`, `[n, D]`, unit vectors, nearest first; fewer where there are fewer. Queries that
    /// come together share passes over the codes. Equally near images come in the order of their ids.
    pub fn search(
        &self,
        queries: &[f32],
        options: &QueryOptions,
        condition: Option<&Condition>,
    ) -> Vec<Vec<Hit<'_>>> {
        let filters = self.filters(condition);
        let QueryOptions { search, expansion, unknown_below } = options;
        let first = match expansion {
            None => *search,
            Some(expansion) => SearchOptions { top_k: expansion.neighbours, ..*search },
        };
        let mut found = self.nearest(queries, &first, &filters);
        // What is unknown is told by the query, and not by what its neighbours make of it.
        let is_known = |found: &Vec<Hit<'_>>| {
            let nearest = found.first().map(|nearest| nearest.similarity);
            nearest.is_some_and(|nearest| unknown_below.is_none_or(|below| nearest >= below))
        };
        let known: Vec<bool> = found.iter().map(is_known).collect();
        if let Some(expansion) = expansion {
            let expanded = self.expanded(queries, &found, *expansion);
            found = self.nearest(&expanded, search, &filters);
        }
        found.iter_mut().zip(known).filter(|(_, known)| !known).for_each(|(found, _)| found.clear());
        found
    }

    fn nearest(&self, queries: &[f32], options: &SearchOptions, filters: &Filters) -> Vec<Vec<Hit<'_>>> {
        let mut found: Vec<Vec<Hit<'_>>> = Vec::with_capacity(queries.len() / self.base.meta().dimension);
        for nearest in self.base.vectors().search(queries, options, filters.base.as_ref()) {
            found.push(nearest.into_iter().map(|neighbour| self.base.hit(neighbour)).collect());
        }
        if let Some(index) = &self.delta.index {
            let nearest = index.vectors().search(queries, options, filters.delta.as_ref());
            for (found, nearest) in found.iter_mut().zip(nearest) {
                found.extend(nearest.into_iter().map(|neighbour| index.hit(neighbour)));
                found.sort_by(|a, b| b.similarity.total_cmp(&a.similarity).then(a.image.id.cmp(b.image.id)));
                found.truncate(options.top_k);
            }
        }
        found
    }

    /// Each query expanded by its nearest images.
    fn expanded(&self, queries: &[f32], nearest: &[Vec<Hit<'_>>], expansion: Expansion) -> Vec<f32> {
        let dimension = self.base.meta().dimension;
        let mut queries = queries.to_vec();
        let mut feature = vec![0.0; dimension];
        for (query, nearest) in queries.chunks_exact_mut(dimension).zip(nearest) {
            for hit in nearest {
                self.read(hit.image.id, &mut feature);
                expansion.add(query, &feature, hit.similarity);
            }
            normalize(query);
        }
        queries
    }

    /// The feature of an image that there is.
    fn read(&self, id: &str, feature: &mut [f32]) {
        let place = |index: &Index| index.images().find(id);
        let delta = self.delta.index.as_ref().and_then(|index| Some((index, place(index)?)));
        if let Some((index, row)) = delta.or_else(|| Some((&*self.base, place(&self.base)?))) {
            index.vectors().read(row, feature);
        }
    }

    /// Whether a condition is at hand: another has to be held against every image first.
    pub fn remembers(&self, condition: &Condition) -> bool {
        let known = self.filters.lock().unwrap_or_else(PoisonError::into_inner);
        condition.is_empty() || known.keys().any(|known| known.as_ref() == Some(condition))
    }

    fn filters(&self, condition: Option<&Condition>) -> Arc<Filters> {
        let condition = condition.filter(|condition| !condition.is_empty()).cloned();
        let remembered = || self.filters.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(filters) = remembered().get(&condition) {
            return filters.clone();
        }
        // Outside the lock: looking at a million labels takes a tenth of a second.
        let (vectors, images) = (self.base.vectors(), self.base.images());
        let gone = &self.delta.gone;
        let (base, delta) = match &condition {
            None => ((!gone.is_empty()).then(|| vectors.filter_without(gone)), None),
            Some(condition) => {
                let admits = |image: Entry<'_>| condition.admits(image);
                let base = vectors.filter(|row| gone.binary_search(&row).is_err() && admits(images.get(row)));
                (Some(base), self.delta.index.as_ref().map(|index| index.filter(admits)))
            }
        };
        let filters = Arc::new(Filters { base, delta });
        let mut all = remembered();
        if all.len() >= FILTERS_MAX
            && let Some(other) = all.keys().find(|other| other.is_some()).cloned()
        {
            all.remove(&other);
        }
        all.insert(condition, filters.clone());
        filters
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::index::{CodesOption, IndexOptions};
    use crate::store::{Attributes, Reader, Store, load};
    use crate::testing::{SPACE, random_units};

    const D: usize = 16;

    fn entry(number: usize, version: usize) -> (Image, Vec<f32>) {
        let mut attributes = Attributes::default();
        attributes.set("room", &(number % 3).to_string()).unwrap();
        let image = Image {
            id: format!("{number:04}"),
            path: String::new(),
            label: format!("label {version}"),
            attributes,
            photo_hash: [0; 32],
        };
        (image, random_units(1, D, (1000 * version + number) as u64))
    }

    fn index_of(dir: &std::path::Path, options: &IndexOptions) -> Index {
        Index::build(load(dir).unwrap(), None, options, &mut |_, _, _| true).unwrap()
    }

    fn found(
        view: &View,
        query: &[f32],
        options: &QueryOptions,
        condition: Option<&Condition>,
    ) -> Vec<(String, f32)> {
        let found = view.search(query, options, condition).pop().unwrap();
        found
            .into_iter()
            .map(|hit| (format!("{} {}", hit.image.id, hit.image.label), hit.similarity))
            .collect()
    }

    fn room(number: &str) -> Condition {
        Condition::new(BTreeMap::from([("room".to_owned(), vec![number.to_owned()])])).unwrap()
    }

    /// Adds, replaces and removes at random; each view must answer as an index of that generation does.
    fn check(changes: &[(usize, u8)], codes: CodesOption) {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(dir.path(), SPACE, D).unwrap();
        store.put(&(0..60).map(|number| entry(number, 0)).collect::<Vec<_>>()).unwrap();
        let options = IndexOptions { codes, recall: 1.0, ..IndexOptions::default() };
        let mut view = View::of(Arc::new(index_of(dir.path(), &options)));
        let first = view.state();
        let reader = Reader::open(dir.path()).unwrap();
        for (step, (number, kind)) in changes.iter().enumerate() {
            match kind % 3 {
                0 => store.remove([entry(*number, 0).0.id.as_str()]).map(drop).unwrap(),
                _ => store.put(&[entry(*number, step + 1)]).unwrap(),
            }
            view = view.advance(&reader.now().unwrap(), 1000).unwrap().unwrap();
            assert_eq!(view.base().state(), first);
        }
        let whole =
            View::of(Arc::new(index_of(dir.path(), &IndexOptions { codes: CodesOption::Exact, ..options })));
        assert_eq!((view.state(), view.len()), (whole.state(), whole.len()));
        assert!(
            view.images()
                .map(|image| (image.id, image.label))
                .eq(whole.images().map(|image| (image.id, image.label)))
        );
        let search = QueryOptions::from(SearchOptions { rerank: Some(60), ..SearchOptions::top(7) });
        for number in 0..10 {
            let query = random_units(1, D, 5000 + number);
            let unknown = QueryOptions { unknown_below: Some(0.4), ..search };
            let expanded = QueryOptions { expansion: Some(Expansion::new(3)), ..search };
            for options in [search, unknown, expanded] {
                for condition in [None, Some(&room("1")), Some(&room("9"))] {
                    let (ours, theirs) = (
                        found(&view, &query, &options, condition),
                        found(&whole, &query, &options, condition),
                    );
                    assert_eq!(ours, theirs, "{options:?} {condition:?}");
                    assert_eq!(view.count(condition), whole.count(condition));
                }
            }
        }
        for id in ["", "0003", "0031x", "9"] {
            let ids = |view: &View| {
                view.images_after(Some(id)).map(|image| image.id.to_owned()).collect::<Vec<_>>()
            };
            assert_eq!(ids(&view), ids(&whole), "after {id}");
        }
        for number in 0..70 {
            let id = format!("{number:04}");
            assert_eq!(view.image(&id).map(|image| image.label), whole.image(&id).map(|image| image.label));
        }
    }

    #[test]
    fn what_was_put_replaced_and_removed_is_seen_over_exact_and_coded_indexes() {
        let changes = [(3, 0), (65, 1), (5, 1), (5, 2), (65, 0), (66, 1), (3, 1), (7, 0)];
        check(&changes, CodesOption::Exact);
        check(&changes, CodesOption::Four { sub_spaces: Some(8) });
    }

    #[test]
    fn a_view_of_an_empty_gallery_grows() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(dir.path(), SPACE, D).unwrap();
        let view = View::of(Arc::new(index_of(dir.path(), &IndexOptions::default())));
        let (query, options) = (random_units(1, D, 1), SearchOptions::top(3).into());
        assert!(view.is_empty() && view.search(&query, &options, None)[0].is_empty());
        store.put(&[entry(1, 1)]).unwrap();
        let now = Reader::open(dir.path()).unwrap().now().unwrap();
        let view = view.advance(&now, 1).unwrap().unwrap();
        assert_eq!((view.len(), found(&view, &query, &options, None).len()), (1, 1));
    }

    #[test]
    fn too_many_changes_and_another_gallery_need_a_new_index() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut store = Store::open(dir.path(), SPACE, D).unwrap();
        store.put(&[entry(0, 0)]).unwrap();
        let view = View::of(Arc::new(index_of(dir.path(), &IndexOptions::default())));
        store.put(&[entry(1, 0), entry(2, 0), entry(3, 0)]).unwrap();
        let now = Reader::open(dir.path()).unwrap().now().unwrap();
        assert!(view.advance(&now, 2).unwrap().is_none());
        assert_eq!(view.advance(&now, 3).unwrap().unwrap().changes(), 3);
        Store::open(other.path(), SPACE, D).unwrap().put(&[entry(0, 0)]).unwrap();
        assert!(view.advance(&Reader::open(other.path()).unwrap().now().unwrap(), 9).unwrap().is_none());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(12))]
        #[test]
        fn a_view_answers_as_an_index_of_its_generation(changes in proptest::collection::vec((0..70_usize, any::<u8>()), 0..25)) {
            check(&changes, CodesOption::Exact);
        }
    }
}
