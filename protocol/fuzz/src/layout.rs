//! Request bodies that fill every field of the guard's layout. That the message crate reads them is a test of the guard.

use streamgauge_protocol::versions::Api;

// The guard keeps its layouts to itself; its own tests see them twice.
#[allow(clippy::duplicate_mod)]
#[path = "../../src/guard/schema.rs"]
mod schema;

use schema::{Field, Kind};

/// How much a body holds.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Elements of every array.
    pub elements: usize,
    /// Bytes of every text and blob.
    pub text_bytes: usize,
    /// Tagged fields from the future in every structure (of flexible versions), with `tag_bytes` each.
    pub unknown_tags: usize,
    pub tag_bytes: usize,
}

/// Two of everything.
pub const SMALL: Shape = Shape {
    elements: 2,
    text_bytes: 3,
    unknown_tags: 1,
    tag_bytes: 2,
};

/// The body of a request of this API and version.
pub fn body(api: &Api, version: i16, shape: Shape) -> Vec<u8> {
    let fields = schema::fields(api.key).expect("every served API has a layout");
    let mut writer = Writer {
        version,
        flexible: api.is_flexible(version),
        shape,
        out: Vec::new(),
    };
    writer.structure(fields);
    writer.out
}

struct Writer {
    version: i16,
    flexible: bool,
    shape: Shape,
    out: Vec<u8>,
}

impl Writer {
    fn structure(&mut self, fields: &'static [Field]) {
        let (version, flexible) = (self.version, self.flexible);
        let present = |field: &&Field| field.is_in(version);
        for field in fields.iter().filter(present) {
            if field.tag.is_none() {
                self.value(&field.kind);
            }
        }
        if !flexible {
            return;
        }
        let tagged = fields
            .iter()
            .filter(present)
            .filter_map(|field| Some((field.tag?, &field.kind)));
        let tagged: Vec<_> = tagged.collect();
        self.unsigned(tagged.len() + self.shape.unknown_tags);
        for (tag, kind) in tagged {
            self.unsigned(tag as usize);
            let before = std::mem::take(&mut self.out);
            self.value(kind);
            let value = std::mem::replace(&mut self.out, before);
            self.unsigned(value.len());
            self.out.extend(value);
        }
        for tag in 0..self.shape.unknown_tags {
            self.unsigned(100 + tag);
            self.unsigned(self.shape.tag_bytes);
            self.fill(9, self.shape.tag_bytes);
        }
    }

    fn value(&mut self, kind: &Kind) {
        let Shape {
            elements,
            text_bytes,
            ..
        } = self.shape;
        match *kind {
            Kind::Fixed(bytes) => {
                self.fill(0, bytes - 1);
                self.out.push(1);
            }
            Kind::Text => {
                if self.flexible {
                    self.unsigned(text_bytes + 1);
                } else {
                    self.out.extend((text_bytes as i16).to_be_bytes());
                }
                self.fill(b'a', text_bytes);
            }
            Kind::Blob => {
                self.length(text_bytes);
                self.fill(b'x', text_bytes);
            }
            Kind::Array(fields) => {
                self.length(elements);
                for _ in 0..elements {
                    self.structure(fields);
                }
            }
            Kind::Texts => {
                self.length(elements);
                for _ in 0..elements {
                    self.value(&Kind::Text);
                }
            }
            Kind::Numbers(bytes) => {
                self.length(elements);
                self.fill(1, bytes * elements);
            }
            Kind::Structure(fields) => self.structure(fields),
            Kind::NullableStructure(fields) => {
                self.out.push(1);
                self.structure(fields);
            }
        }
    }

    /// The length of bytes and arrays.
    fn length(&mut self, length: usize) {
        if self.flexible {
            self.unsigned(length + 1);
        } else {
            self.out.extend((length as i32).to_be_bytes());
        }
    }

    fn unsigned(&mut self, mut value: usize) {
        while value >= 0x80 {
            self.out.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.out.push(value as u8);
    }

    fn fill(&mut self, byte: u8, count: usize) {
        self.out.extend(std::iter::repeat_n(byte, count));
    }
}
