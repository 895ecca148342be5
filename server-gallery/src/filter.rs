//! Which images a query may be answered with: conditions on label and attributes.
//!
//! In messages a filter is a map from names to one value or a list of values, as `{"room": ["3", "4"], "label": "apple"}`: an
//! image is admitted when every name that is listed has one of its values. The name `label` is the label's.

use std::collections::BTreeMap;

use serde::Deserialize;
use thiserror::Error;

use crate::catalogue::Entry;

/// Names in a filter, at most.
const NAMES_MAX: usize = 8;

/// Values in a filter, at most.
const VALUES_MAX: usize = 64;

/// The longest name or value, in bytes: longer ones are nowhere in a gallery.
const TEXT_BYTES_MAX: usize = 128;

/// What an image must be to be found.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Condition(BTreeMap<String, Vec<String>>);

/// Why a filter cannot be followed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ConditionError {
    /// Too much of it.
    #[error("a filter has at most {NAMES_MAX} names and {VALUES_MAX} values of {TEXT_BYTES_MAX} bytes")]
    TooMuch,
    /// A name with nothing that it may be.
    #[error("the filter lists no value for `{0}`")]
    NoValue(String),
}

/// A filter as it is written in a message.
#[derive(Debug, Clone, Deserialize)]
#[serde(transparent)]
pub struct RawCondition(BTreeMap<String, OneOrMore>);

#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

impl TryFrom<RawCondition> for Condition {
    type Error = ConditionError;

    fn try_from(raw: RawCondition) -> Result<Self, ConditionError> {
        let values = raw.0.into_iter().map(|(name, values)| {
            let values = match values {
                OneOrMore::One(value) => vec![value],
                OneOrMore::More(values) => values,
            };
            (name, values)
        });
        Self::new(values.collect())
    }
}

impl Condition {
    /// Admits images that have, for every name, one of its values.
    ///
    /// # Errors
    /// A filter that is too large, or that admits nothing because a name has no values.
    pub fn new(mut values: BTreeMap<String, Vec<String>>) -> Result<Self, ConditionError> {
        let texts = || values.iter().flat_map(|(name, values)| std::iter::once(name).chain(values));
        let all: usize = values.values().map(Vec::len).sum();
        if values.len() > NAMES_MAX || all > VALUES_MAX || texts().any(|text| text.len() > TEXT_BYTES_MAX) {
            return Err(ConditionError::TooMuch);
        }
        if let Some((name, _)) = values.iter().find(|(_, values)| values.is_empty()) {
            return Err(ConditionError::NoValue(name.clone()));
        }
        // Two ways to write one filter are one filter.
        for values in values.values_mut() {
            values.sort_unstable();
            values.dedup();
        }
        Ok(Self(values))
    }

    /// Whether it admits an image.
    pub fn admits(&self, image: Entry<'_>) -> bool {
        self.0.iter().all(|(name, wanted)| {
            let value = if name == "label" { Some(image.label) } else { image.attribute(name) };
            value.is_some_and(|value| wanted.iter().any(|wanted| wanted == value))
        })
    }

    /// Whether it admits everything.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::Catalogue;
    use crate::store::{Attributes, Image};

    fn condition(text: &str) -> Result<Condition, String> {
        let raw: RawCondition = serde_json::from_str(text).map_err(|error| error.to_string())?;
        raw.try_into().map_err(|error: ConditionError| error.to_string())
    }

    #[test]
    fn an_image_is_admitted_when_every_name_has_one_of_its_values() {
        let mut attributes = Attributes::default();
        attributes.set("room", "3").unwrap();
        let image = Image {
            id: "a".to_owned(),
            path: String::new(),
            label: "apple".to_owned(),
            attributes,
            photo_hash: [0; 32],
        };
        let images: Catalogue = [image].iter().collect();
        for (text, admitted) in [
            ("{}", true),
            (r#"{"label":"apple"}"#, true),
            (r#"{"label":"Apple"}"#, false),
            (r#"{"room":["4","3"]}"#, true),
            (r#"{"room":"3","label":["pear","apple"]}"#, true),
            (r#"{"room":"3","label":"pear"}"#, false),
            (r#"{"floor":"3"}"#, false),
        ] {
            assert_eq!(condition(text).unwrap().admits(images.get(0)), admitted, "{text}");
        }
        assert_eq!(condition(r#"{"room":["4","3","4"]}"#), condition(r#"{"room":["3","4"]}"#));
    }

    #[test]
    fn what_is_no_filter_is_refused() {
        let many = format!("{{\"a\":[{}]}}", vec!["\"x\""; 65].join(","));
        let names = (0..9).map(|n| format!("\"n{n}\":\"x\"")).collect::<Vec<_>>().join(",");
        let long = format!("{{\"a\":\"{}\"}}", "x".repeat(129));
        for text in [&many, &format!("{{{names}}}"), &long, r#"{"a":[]}"#, r#"{"a":5}"#, r#"["a"]"#] {
            assert!(condition(text).is_err(), "{text}");
        }
    }
}
