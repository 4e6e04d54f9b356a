//! Reads the listing of a NAR (Nix's `doc/manual/source/protocols/json/nar-listing.md`) and keeps
//! only the part that a page shows: as a tree, a listing takes thirty times its size.

use std::fmt;
use std::io::{self, BufRead};

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, Visitor};

use super::file_collector::FileCollector;
use crate::nix::nar::NarEvent;

/// Reads a listing until `collector` is full.
pub(super) fn read(input: impl BufRead, collector: &mut FileCollector) -> io::Result<()> {
    let mut json = serde_json::Deserializer::from_reader(input);
    match Listing(collector).deserialize(&mut json) {
        Ok(()) => Ok(()),
        Err(_) if collector.is_full() => Ok(()),
        Err(error) if error.is_io() => Err(error.into()),
        Err(error) => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("the listing is not valid: {error}"),
        )),
    }
}

struct Listing<'a>(&'a mut FileCollector);

/// A file of any kind.
struct Node<'a>(&'a mut FileCollector);

/// The entries of a directory.
struct Entries<'a>(&'a mut FileCollector);

macro_rules! seed_of_an_object {
    ($name:ident) => {
        impl<'de> DeserializeSeed<'de> for $name<'_> {
            type Value = ();

            fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
                json.deserialize_map(self)
            }
        }
    };
}

seed_of_an_object!(Listing);
seed_of_an_object!(Node);
seed_of_an_object!(Entries);

impl<'de> Visitor<'de> for Listing<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a listing")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut has_root = false;
        while let Some(key) = map.next_key::<String>()? {
            if key != "root" {
                map.next_value::<IgnoredAny>()?;
            } else if std::mem::replace(&mut has_root, true) {
                return Err(A::Error::duplicate_field("root"));
            } else {
                map.next_value_seed(Node(self.0))?;
            }
        }
        if has_root { Ok(()) } else { Err(A::Error::missing_field("root")) }
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a file")
    }

    /// Nix sorts the keys, so the `entries` of a directory come before its `type`.
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let (mut kind, mut size, mut executable, mut target) = (String::new(), 0, false, None);
        let mut is_directory = false;
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "type" => kind = map.next_value()?,
                "size" => size = map.next_value()?,
                "executable" => executable = map.next_value()?,
                "target" => target = Some(map.next_value::<String>()?),
                "entries" if is_directory => return Err(A::Error::duplicate_field("entries")),
                "entries" => {
                    is_directory = true;
                    self.0.add(NarEvent::Directory);
                    map.next_value_seed(Entries(self.0))?;
                    self.0.add(NarEvent::DirectoryEnd);
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        match (kind.as_str(), is_directory, target) {
            ("directory", true, _) => {}
            ("directory", false, _) => return Err(A::Error::missing_field("entries")),
            ("regular", false, _) => self.0.add(NarEvent::File { size, executable }),
            ("symlink", false, Some(target)) => self.0.add(NarEvent::Symlink(target.into_bytes())),
            ("symlink", false, None) => return Err(A::Error::missing_field("target")),
            _ => return Err(A::Error::custom("a file of no known type")),
        }
        if self.0.is_full() { Err(A::Error::custom("that is enough")) } else { Ok(()) }
    }
}

impl<'de> Visitor<'de> for Entries<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the files in a directory")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(name) = map.next_key::<String>()? {
            self.0.add(NarEvent::Name(name.into_bytes()));
            map.next_value_seed(Node(self.0))?;
        }
        Ok(())
    }
}
