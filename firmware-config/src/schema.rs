//! The schema of `device.toml` for editors (JSON Schema, draft 2020-12), and the table of its keys for people. Both are made
//! of [`ALL_KEYS`], which the parser's advice and a new file are made of too.

use glimpse_protocol::device::{ALL_KEYS, Key, Kind, TABLES};
use serde_json::{Map, Value, json};

/// The schema. What it cannot say, such as that a gateway is in the device's network, `check` does.
pub fn json_schema() -> Value {
    let mut top = table("");
    for (name, about) in TABLES {
        let mut inner = table(name);
        inner.insert("description".to_owned(), json!(about));
        if let Some(properties) = top.get_mut("properties").and_then(Value::as_object_mut) {
            properties.insert(name.to_owned(), Value::Object(inner));
        }
    }
    let mut schema = Map::new();
    schema.insert("$schema".to_owned(), json!("https://json-schema.org/draft/2020-12/schema"));
    schema.insert("title".to_owned(), json!("A Glimpse device (device.toml)"));
    schema.append(&mut top);
    schema.insert("required".to_owned(), json!(["server", "camera"]));
    schema.insert("anyOf".to_owned(), json!([{ "required": ["bundle"] }, { "required": ["model"] }]));
    let is = |key: &str, value: Value| json!({ "properties": { key: value }, "required": [key] });
    schema.insert(
        "allOf".to_owned(),
        json!([
            {
                "if": is("server", json!({ "pattern": "^mqtts://" })),
                "then": { "required": ["ca"] },
                "else": { "properties": { "ca": false, "certificate": false, "key": false } },
            },
            {
                "if": is("codec", json!({ "const": "pq" })),
                "then": { "anyOf": [{ "required": ["codebook"] }, { "required": ["bundle"] }] },
            },
            { "if": is("trigger", json!({ "const": "button" })), "then": { "required": ["button"] } },
        ]),
    );
    Value::Object(schema)
}

/// A table without its description.
fn table(name: &str) -> Map<String, Value> {
    let keys = || ALL_KEYS.iter().filter(|key| key.table_and_name().0 == name);
    let properties: Map<String, Value> =
        keys().map(|key| (key.table_and_name().1.to_owned(), property(key))).collect();
    let needs: Map<String, Value> = keys()
        .filter(|key| !key.needs.is_empty())
        .map(|key| (key.table_and_name().1.to_owned(), json!(key.needs)))
        .collect();
    let mut table = Map::new();
    table.insert("type".to_owned(), json!("object"));
    table.insert("additionalProperties".to_owned(), json!(false));
    table.insert("properties".to_owned(), Value::Object(properties));
    if !needs.is_empty() {
        table.insert("dependentRequired".to_owned(), Value::Object(needs));
    }
    table
}

fn property(key: &Key) -> Value {
    let mut property = match key.kind {
        Kind::Text(pattern) => json!({ "type": "string", "pattern": pattern }),
        Kind::OneOf(words) => json!({ "enum": words }),
        Kind::Path => json!({ "type": "string", "minLength": 1 }),
        Kind::Integer(min, max) => json!({ "type": "integer", "minimum": min, "maximum": max }),
        Kind::Number(min, max) => json!({ "type": "number", "minimum": min, "maximum": max }),
        Kind::NumberAbove(above, max) => {
            json!({ "type": "number", "exclusiveMinimum": above, "maximum": max })
        }
        Kind::False => json!({ "const": false }),
        Kind::Texts(pattern) => json!({ "type": "array", "items": { "type": "string", "pattern": pattern } }),
    };
    if let Some(property) = property.as_object_mut() {
        property.insert("description".to_owned(), json!(key.about));
        if let Some(default) = key.default.and_then(value) {
            property.insert("default".to_owned(), default);
        }
        // The example of a signing key is none.
        if let Some(example) = value(key.example).filter(|_| key.path != "model_key") {
            property.insert("examples".to_owned(), json!([example]));
        }
    }
    property
}

/// A value of TOML.
fn value(text: &str) -> Option<Value> {
    let table: toml::Table = format!("x = {text}").parse().ok()?;
    serde_json::to_value(table.get("x")?).ok()
}

/// The keys for people, as `docs/device.md` has them.
pub fn markdown() -> String {
    let rows = |table: &str| -> String {
        let keys = ALL_KEYS.iter().filter(|key| key.table_and_name().0 == table);
        let row = |key: &Key| {
            let (_, name) = key.table_and_name();
            let default = key.default.map_or_else(String::new, |default| format!("`{default}`"));
            format!("| `{name} = {}` | {default} | {} | {} |\n", key.example, takes(&key.kind), key.about)
        };
        let head = "| key, with an example | default | takes | what it means |\n|---|---|---|---|\n";
        head.to_owned() + &keys.map(row).collect::<String>()
    };
    let tables = TABLES.map(|(name, about)| format!("\n## `[{name}]`\n\n{about}\n\n{}", rows(name)));
    rows("") + &tables.concat()
}

fn takes(kind: &Kind) -> String {
    match kind {
        Kind::Text(_) => "text".to_owned(),
        Kind::OneOf(words) => words.join(", "),
        Kind::Path => "a path".to_owned(),
        Kind::Integer(min, max) => format!("{min} to {max}"),
        Kind::Number(min, max) => format!("a number from {min} to {max}"),
        Kind::NumberAbove(above, max) => format!("a number above {above}, to {max}"),
        Kind::False => "`false`".to_owned(),
        Kind::Texts(_) => "a list of texts".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use glimpse_protocol::device::RawDevice;
    use regex::Regex;
    use std::path::Path;

    /// Whether a value is what a schema says. It knows the words that ours is made of, and fails at any other.
    fn fits(schema: &Value, value: &Value) -> bool {
        let Value::Object(words) = schema else { return schema == &json!(true) };
        let all = |schemas: &Value| schemas.as_array().unwrap().iter().all(|schema| fits(schema, value));
        let any = |schemas: &Value| schemas.as_array().unwrap().iter().any(|schema| fits(schema, value));
        let number = |bound: &Value, holds: fn(f64, f64) -> bool| {
            value.as_f64().is_none_or(|value| holds(value, bound.as_f64().unwrap()))
        };
        let has =
            |key: &Value| value.as_object().is_none_or(|table| table.contains_key(key.as_str().unwrap()));
        words.iter().all(|(word, says)| match word.as_str() {
            "$schema" | "title" | "description" | "default" | "examples" | "then" | "else" => true,
            "type" => match says.as_str().unwrap() {
                "object" => value.is_object(),
                "array" => value.is_array(),
                "string" => value.is_string(),
                "number" => value.is_number(),
                "integer" => value.is_i64(),
                other => panic!("no type {other}"),
            },
            "enum" => says.as_array().unwrap().contains(value),
            "const" => says == value,
            "pattern" => {
                value.as_str().is_none_or(|text| Regex::new(says.as_str().unwrap()).unwrap().is_match(text))
            }
            "minLength" => {
                value.as_str().is_none_or(|text| text.chars().count() as u64 >= says.as_u64().unwrap())
            }
            "minimum" => number(says, |value, bound| value >= bound),
            "maximum" => number(says, |value, bound| value <= bound),
            "exclusiveMinimum" => number(says, |value, bound| value > bound),
            "items" => value.as_array().is_none_or(|items| items.iter().all(|item| fits(says, item))),
            "properties" => says
                .as_object()
                .unwrap()
                .iter()
                .all(|(key, says)| value.get(key).is_none_or(|value| fits(says, value))),
            "additionalProperties" => {
                assert_eq!(says, &json!(false));
                let known = words["properties"].as_object().unwrap();
                value.as_object().is_none_or(|table| table.keys().all(|key| known.contains_key(key)))
            }
            "required" => says.as_array().unwrap().iter().all(has),
            "dependentRequired" => says
                .as_object()
                .unwrap()
                .iter()
                .all(|(key, needs)| value.get(key).is_none() || needs.as_array().unwrap().iter().all(has)),
            "anyOf" => any(says),
            "allOf" => all(says),
            "if" => {
                let then = if fits(says, value) { "then" } else { "else" };
                words.get(then).is_none_or(|says| fits(says, value))
            }
            other => panic!("{other} is no word that this test knows"),
        })
    }

    fn is_valid(text: &str) -> (bool, bool) {
        let by_schema = text
            .parse::<toml::Table>()
            .is_ok_and(|table| fits(&json_schema(), &serde_json::to_value(table).unwrap()));
        let (raw, problems) = RawDevice::parse(text, Path::new(""));
        (by_schema, raw.validate(problems).is_ok())
    }

    #[test]
    fn the_schema_is_one_and_has_every_key() {
        let schema = json_schema();
        for key in ALL_KEYS {
            let (table, name) = key.table_and_name();
            let pointer = if table.is_empty() {
                format!("/properties/{name}")
            } else {
                format!("/properties/{table}/properties/{name}")
            };
            let property = schema.pointer(&pointer).unwrap_or_else(|| panic!("{pointer} is missing"));
            assert_eq!(property["description"], key.about);
        }
        let count = |pointer: &str| schema.pointer(pointer).unwrap().as_object().unwrap().len();
        let all = count("/properties") - TABLES.len()
            + count("/properties/network/properties")
            + count("/properties/privacy/properties");
        assert_eq!(all, ALL_KEYS.len());
    }

    #[test]
    fn schema_and_parser_agree_on_what_is_a_device() {
        let head = "server = 'a'\ncamera = 'rpicam'\nbundle = 'b'\n";
        let tls = "server = 'mqtts://a'\nca = 'c'\ncamera = 'rpicam'\nbundle = 'b'\n";
        assert_eq!(is_valid(head), (true, true));
        for (head, more) in [
            (
                head,
                "device = 'door-1'\ngroup = 'g.1'\nboard = 'qemu-virt'\ncodec = 'pq'\ntimeout = 5\ntop_k = 100",
            ),
            (
                head,
                "camera_size = '640x480'\ncamera_format = 'nv12'\ntrigger = 'interval:2.5'\nsharpness_min = 0",
            ),
            (
                head,
                "trigger = 'button'\nbutton = 'gpiochip0:3:low'\nled = 'gpiochip4:17'\nunknown_below = -0.5",
            ),
            (
                head,
                "webhook = 'https://[::1]:8/x?y=z'\nwebhook_ca = 'c'\nwebhook_token_file = 't'\nexec = 'e'",
            ),
            (
                head,
                "outbox = 'o'\noutbox_mb = 4\noutbox_hours = 8784\nkeep_alive = 5\nqueries_per_minute = 1",
            ),
            (head, "threads = 32\ncores = '0,2-3'\nmodel = 'm'\ncodebook = 'c'\npassword_file = 'p'"),
            (tls, "certificate = 'c'\nkey = 'k'"),
            (head, "[network]\naddress = '10.0.0.2/24'\ngateway = '10.0.0.1'\ndns = ['10.0.0.1', 'fd00::1']"),
            (
                head,
                "[network]\nwifi_ssid = 'caf\u{e9}'\nwifi_country = 'CH'\nwifi_password_file = 'w'\nntp = ['a.b']",
            ),
            (head, "[privacy]\nkeep_photos = false\nshare_photos = false"),
        ] {
            assert_eq!(is_valid(&format!("{head}{more}")), (true, true), "{more}");
        }
        for (head, more) in [
            ("", "server = 'a'\nbundle = 'b'"),
            ("", "server = 'a'\ncamera = 'rpicam'"),
            ("", "server = 'mqtts://a'\ncamera = 'rpicam'\nbundle = 'b'"),
            ("", "server = 'a b'\ncamera = 'rpicam'\nbundle = 'b'"),
            ("", "server = 'a'\ncamera = 'usb'\nbundle = 'b'"),
            ("", "server = 'a'\ncamera = 'rpicam'\nmodel = 'm'\ncodec = 'pq'"),
            (head, "ca = 'c'"),
            (head, "key = 'k'"),
            (tls, "key = 'k'"),
            (tls, "certificate = 'c'"),
            (head, "thing = 1"),
            (head, "device = 'two words'"),
            (head, "group = ''"),
            (head, "board = 'raspberry-pi-2'"),
            (head, "codec = 'f64'"),
            (head, "codebook = ''"),
            (head, "top_k = 0"),
            (head, "top_k = '10'"),
            (head, "timeout = 0"),
            (head, "timeout = 3601"),
            (head, "sharpness_min = -0.1"),
            (head, "unknown_below = 1.5"),
            (head, "trigger = 'button'"),
            (head, "trigger = 'sometimes'"),
            (head, "button = '3'"),
            (head, "camera_size = '640'"),
            (head, "camera_format = 'jpeg'"),
            (head, "webhook = 'ftp://a'"),
            (head, "webhook = 'http://me:word@a'"),
            (head, "webhook_ca = 'c'"),
            (head, "outbox_mb = 8"),
            (head, "state = 's'"),
            (head, "model_key = '00'"),
            (head, "cores = 'all'"),
            (head, "threads = 33"),
            (head, "keep_alive = 4"),
            (head, "[network]\nadress = '10.0.0.2/24'"),
            (head, "[network]\naddress = '10.0.0.2'"),
            (head, "[network]\ngateway = '10.0.0.1'"),
            (head, "[network]\ndns = '10.0.0.1'"),
            (head, "[network]\nwifi_ssid = 'a'"),
            (head, "[network]\nwifi_country = 'ch'\nwifi_ssid = 'a'"),
            (head, "[privacy]\nkeep_photos = true"),
        ] {
            assert_eq!(is_valid(&format!("{head}{more}")), (false, false), "{head}{more}");
        }
    }

    #[test]
    fn the_table_for_people_has_every_key_and_is_in_the_documents() {
        let markdown = markdown();
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/device.md");
        let document = std::fs::read_to_string(file).unwrap();
        assert!(
            document.contains(&markdown),
            "write what `glimpse-firmware schema --markdown` prints into docs/device.md"
        );
    }
}
