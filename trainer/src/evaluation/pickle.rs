//! Ground truth in Python's pickle format, read without Python.
//!
//! A pickle is a program for a stack machine. This reader runs the part of it that makes lists, tuples, dictionaries,
//! strings and numbers (protocols 0 to 5), and refuses the rest: nothing is ever called. Values live in one arena and
//! name each other by place, so that neither deep nesting nor repeated references of a crafted file cost more memory than
//! the file is long. The opcodes are those of `pickletools` in Python's standard library.

use std::collections::HashMap;

/// The place of a value in a [`Pickle`].
type Place = usize;

/// What stands at a place.
#[derive(Debug, Clone, PartialEq)]
enum Value {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    Sequence(Vec<Place>),
    Dictionary(Vec<(Place, Place)>),
}

/// A pickle that was read whole.
#[derive(Debug)]
pub struct Pickle {
    values: Vec<Value>,
    root: Place,
}

/// A value of a pickle.
#[derive(Debug, Clone, Copy)]
pub struct Node<'a> {
    pickle: &'a Pickle,
    place: Place,
}

impl Pickle {
    /// Reads a pickle.
    ///
    /// # Errors
    /// A sentence on what it holds that this reader does not take, with its byte.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let mut machine = Machine { bytes, ..Machine::default() };
        let root = machine.run().map_err(|reason| format!("{reason} (before byte {})", machine.at))?;
        Ok(Self { values: machine.values, root })
    }

    /// What it holds.
    pub fn root(&self) -> Node<'_> {
        Node { pickle: self, place: self.root }
    }
}

impl<'a> Node<'a> {
    fn value(self) -> &'a Value {
        &self.pickle.values[self.place]
    }

    fn at(self, place: Place) -> Self {
        Self { place, ..self }
    }

    /// The entry of a dictionary.
    ///
    /// # Errors
    /// Where it is no dictionary, or has no such key.
    pub fn get(self, key: &str) -> Result<Self, String> {
        let Value::Dictionary(entries) = self.value() else { return Err("it is no dictionary".to_owned()) };
        // The last one counts, as in Python.
        let mut entries = entries.iter().rev();
        let entry =
            entries.find(|(own, _)| matches!(&self.pickle.values[*own], Value::Text(own) if own == key));
        entry.map(|(_, value)| self.at(*value)).ok_or_else(|| format!("it has no `{key}`"))
    }

    /// The elements of a list or tuple.
    ///
    /// # Errors
    /// Where it is neither.
    pub fn elements(self) -> Result<impl ExactSizeIterator<Item = Self>, String> {
        let Value::Sequence(places) = self.value() else { return Err("it is no list".to_owned()) };
        Ok(places.iter().map(move |&place| self.at(place)))
    }

    /// A string.
    ///
    /// # Errors
    /// Where it is none.
    pub fn text(self) -> Result<&'a str, String> {
        let Value::Text(text) = self.value() else { return Err("it is no string".to_owned()) };
        Ok(text)
    }

    /// A number that counts something.
    ///
    /// # Errors
    /// Where it is none.
    pub fn index(self) -> Result<usize, String> {
        let Value::Int(number) = self.value() else { return Err("it is no whole number".to_owned()) };
        usize::try_from(*number).map_err(|_| format!("{number} is below zero"))
    }

    /// A number.
    ///
    /// # Errors
    /// Where it is none.
    pub fn number(self) -> Result<f64, String> {
        match self.value() {
            Value::Int(number) => Ok(*number as f64),
            Value::Float(number) => Ok(*number),
            _ => Err("it is no number".to_owned()),
        }
    }
}

#[derive(Default)]
struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    values: Vec<Value>,
    stack: Vec<Place>,
    /// Heights of the stack at each mark.
    marks: Vec<usize>,
    memo: HashMap<u64, Place>,
}

const ENDS: &str = "it ends too early";

impl<'a> Machine<'a> {
    fn run(&mut self) -> Result<Place, String> {
        loop {
            match self.take(1)?[0] {
                b'.' => return self.pop(),
                0x80 => {
                    let protocol = self.take(1)?[0];
                    if protocol > 5 {
                        return Err(format!("it is of protocol {protocol}, and 5 is the last that is known"));
                    }
                }
                // The length of a frame, which matters to readers of streams only.
                0x95 => drop(self.take(8)?),
                b'(' => self.marks.push(self.stack.len()),
                b'0' => drop(self.pop()?),
                b'1' => drop(self.pop_mark()?),
                b'2' => {
                    let top = self.top()?;
                    self.stack.push(top);
                }
                b'N' => self.push(Value::None),
                0x88 => self.push(Value::Bool(true)),
                0x89 => self.push(Value::Bool(false)),
                b'J' => {
                    let value = i32::from_le_bytes(self.array()?);
                    self.push(Value::Int(value.into()));
                }
                b'K' => {
                    let value = self.take(1)?[0];
                    self.push(Value::Int(value.into()));
                }
                b'M' => {
                    let value = u16::from_le_bytes(self.array()?);
                    self.push(Value::Int(value.into()));
                }
                b'I' => self.decimal_int()?,
                b'L' => {
                    let line = self.line()?.trim_end_matches('L');
                    let value =
                        line.parse().map_err(|_| format!("{line:?} is no whole number of 64 bits"))?;
                    self.push(Value::Int(value));
                }
                0x8a => {
                    let length = self.take(1)?[0];
                    self.long(length.into())?;
                }
                0x8b => {
                    let length = u32::from_le_bytes(self.array()?);
                    self.long(length as usize)?;
                }
                b'F' => {
                    let line = self.line()?;
                    let value = line.parse().map_err(|_| format!("{line:?} is no number"))?;
                    self.push(Value::Float(value));
                }
                b'G' => {
                    let value = f64::from_be_bytes(self.array()?);
                    self.push(Value::Float(value));
                }
                b'S' => {
                    let line = self.line()?;
                    let text = quoted(line).ok_or_else(|| format!("{line:?} is no plain string"))?;
                    self.push(Value::Text(text.to_owned()));
                }
                b'V' => {
                    let line = self.line()?;
                    if line.contains('\\') {
                        return Err(format!("{line:?} has escapes: save it with protocol 2 or later"));
                    }
                    self.push(Value::Text(line.to_owned()));
                }
                b'U' | 0x8c | b'C' => {
                    let length = self.take(1)?[0];
                    self.text(length.into())?;
                }
                b'T' | b'X' | b'B' => {
                    let length = u32::from_le_bytes(self.array()?);
                    self.text(length.into())?;
                }
                0x8d | 0x8e => {
                    let length = u64::from_le_bytes(self.array()?);
                    self.text(length)?;
                }
                b']' | b')' => self.push(Value::Sequence(Vec::new())),
                b'}' => self.push(Value::Dictionary(Vec::new())),
                b'l' | b't' => {
                    let elements = self.pop_mark()?;
                    self.push(Value::Sequence(elements));
                }
                opcode @ 0x85..=0x87 => {
                    let count = usize::from(opcode - 0x84);
                    let start = self.stack.len().checked_sub(count).ok_or(ENDS)?;
                    let elements = self.stack.split_off(start);
                    self.push(Value::Sequence(elements));
                }
                b'd' => {
                    let entries = pairs(&self.pop_mark()?)?;
                    self.push(Value::Dictionary(entries));
                }
                b'a' => {
                    let element = self.pop()?;
                    self.sequence()?.push(element);
                }
                b'e' => {
                    let elements = self.pop_mark()?;
                    self.sequence()?.extend(elements);
                }
                b's' => {
                    let (value, key) = (self.pop()?, self.pop()?);
                    self.dictionary()?.push((key, value));
                }
                b'u' => {
                    let entries = pairs(&self.pop_mark()?)?;
                    self.dictionary()?.extend(entries);
                }
                b'p' => {
                    let key = self.decimal()?;
                    self.remember(key)?;
                }
                b'q' => {
                    let key = self.take(1)?[0];
                    self.remember(key.into())?;
                }
                b'r' => {
                    let key = u32::from_le_bytes(self.array()?);
                    self.remember(key.into())?;
                }
                0x94 => self.remember(self.memo.len() as u64)?,
                b'g' => {
                    let key = self.decimal()?;
                    self.recall(key)?;
                }
                b'h' => {
                    let key = self.take(1)?[0];
                    self.recall(key.into())?;
                }
                b'j' => {
                    let key = u32::from_le_bytes(self.array()?);
                    self.recall(key.into())?;
                }
                b'c' | 0x93 | b'R' | b'i' | b'o' | b'b' | 0x81 | 0x92 => {
                    return Err(
                        "it holds Python objects (NumPy arrays?): save plain lists and numbers".to_owned()
                    );
                }
                other => {
                    return Err(format!("it holds something unknown (opcode {other:#04x}): is it a pickle?"));
                }
            }
        }
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], String> {
        let taken = self.bytes.get(self.at..).and_then(|rest| rest.get(..count)).ok_or(ENDS)?;
        self.at += count;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        self.take(N)?.try_into().map_err(|_| ENDS.to_owned())
    }

    fn line(&mut self) -> Result<&'a str, String> {
        let rest = &self.bytes[self.at..];
        let length = rest.iter().position(|&byte| byte == b'\n').ok_or(ENDS)?;
        self.at += length + 1;
        std::str::from_utf8(&rest[..length]).map_err(|_| "it holds bytes that are no text".to_owned())
    }

    fn decimal(&mut self) -> Result<u64, String> {
        let line = self.line()?;
        line.parse().map_err(|_| format!("{line:?} is no place in the memo"))
    }

    /// `I01` and `I00` are the truth values of protocol 0.
    fn decimal_int(&mut self) -> Result<(), String> {
        let line = self.line()?;
        let value = match line {
            "01" => Value::Bool(true),
            "00" => Value::Bool(false),
            number => {
                Value::Int(number.parse().map_err(|_| format!("{number:?} is no whole number of 64 bits"))?)
            }
        };
        self.push(value);
        Ok(())
    }

    /// A whole number of so many bytes, two's complement.
    fn long(&mut self, length: usize) -> Result<(), String> {
        let bytes = self.take(length)?;
        if length > 8 {
            return Err("it holds a number of more than 64 bits".to_owned());
        }
        let fill = if bytes.last().is_some_and(|last| last & 0x80 != 0) { 0xff } else { 0 };
        let mut wide = [fill; 8];
        wide[..length].copy_from_slice(bytes);
        self.push(Value::Int(i64::from_le_bytes(wide)));
        Ok(())
    }

    fn text(&mut self, length: u64) -> Result<(), String> {
        let bytes = self.take(usize::try_from(length).map_err(|_| ENDS)?)?;
        let text = std::str::from_utf8(bytes).map_err(|_| "it holds bytes that are no text".to_owned())?;
        self.push(Value::Text(text.to_owned()));
        Ok(())
    }

    fn push(&mut self, value: Value) {
        self.values.push(value);
        self.stack.push(self.values.len() - 1);
    }

    /// What is above the last mark stays out of reach for all but those who pop the mark.
    fn top(&self) -> Result<Place, String> {
        let floor = self.marks.last().copied().unwrap_or(0);
        self.stack
            .last()
            .copied()
            .filter(|_| self.stack.len() > floor)
            .ok_or_else(|| "its stack is empty".to_owned())
    }

    fn pop(&mut self) -> Result<Place, String> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn pop_mark(&mut self) -> Result<Vec<Place>, String> {
        let mark = self.marks.pop().ok_or("it ends a group that it did not begin")?;
        Ok(self.stack.split_off(mark.min(self.stack.len())))
    }

    fn sequence(&mut self) -> Result<&mut Vec<Place>, String> {
        let top = self.top()?;
        let Value::Sequence(elements) = &mut self.values[top] else {
            return Err("it appends to what is no list".to_owned());
        };
        Ok(elements)
    }

    fn dictionary(&mut self) -> Result<&mut Vec<(Place, Place)>, String> {
        let top = self.top()?;
        let Value::Dictionary(entries) = &mut self.values[top] else {
            return Err("it adds entries to what is no dictionary".to_owned());
        };
        Ok(entries)
    }

    fn remember(&mut self, key: u64) -> Result<(), String> {
        let top = self.top()?;
        self.memo.insert(key, top);
        Ok(())
    }

    fn recall(&mut self, key: u64) -> Result<(), String> {
        let place =
            *self.memo.get(&key).ok_or_else(|| format!("it refers to value {key}, which it did not keep"))?;
        self.stack.push(place);
        Ok(())
    }
}

fn pairs(places: &[Place]) -> Result<Vec<(Place, Place)>, String> {
    let (pairs, rest) = places.as_chunks::<2>();
    if rest.is_empty() {
        Ok(pairs.iter().map(|&[key, value]| (key, value)).collect())
    } else {
        Err("it has a key without a value".to_owned())
    }
}

/// The contents of a Python string literal without escapes.
fn quoted(line: &str) -> Option<&str> {
    let inner = ['\'', '"'].iter().find_map(|&quote| line.strip_prefix(quote)?.strip_suffix(quote))?;
    (!inner.contains('\\')).then_some(inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crafted_pickles_neither_crash_nor_grow() {
        let nested = [b"]".repeat(1_000_000), b"a".repeat(999_999), b".".to_vec()].concat();
        assert!(Pickle::parse(&nested).is_ok());
        // Each list holds the one before twice: 2^60 elements for whoever copies.
        let laughs = [b"]".to_vec(), b"q\x00]h\x00ah\x00a".repeat(60), b".".to_vec()].concat();
        assert!(Pickle::parse(&laughs).is_ok());
        let own = Pickle::parse(b"]q\x00h\x00a.").unwrap();
        assert_eq!(own.root().elements().unwrap().len(), 1);
    }

    #[test]
    fn what_is_no_plain_pickle_says_why() {
        for (bytes, wanted) in [
            (&b""[..], "ends too early"),
            (b"K", "ends too early"),
            (b".", "stack is empty"),
            (b"cos\nsystem\n(S'true'\ntR.", "Python objects"),
            (b"\x80\x09.", "protocol 9"),
            (b"K\x01K\x02a.", "no list"),
            (b"}(K\x01u.", "without a value"),
            (b"e.", "did not begin"),
            (b"h\x07.", "value 7"),
            (b"I12x\n.", "12x"),
            (b"\x8a\x09\x00\x00\x00\x00\x00\x00\x00\x00\x00.", "64 bits"),
            (b"X\xff\xff\xff\x7fa.", "ends too early"),
            (b"]]((K\x01a.", "stack is empty"),
            (b"<html>", "is it a pickle?"),
        ] {
            let error = Pickle::parse(bytes).unwrap_err();
            assert!(error.contains(wanted), "{wanted}: {error}");
        }
    }
}
