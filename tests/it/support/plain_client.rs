//! The requests of `nix copy`, without the 100 ms that Nix needs to start.

use nix_stored::nix::StorePathHash;

use super::closures::Layers;
use super::noise::Noise;
use super::objects::{Sample, sample};
use super::wire::{RawResponse, Wire};

/// Store paths in layers, with their objects.
pub struct Paths {
    pub layers: Layers,
    samples: Vec<Sample>,
}

impl Paths {
    pub fn new(layers: Layers) -> Self {
        Self::numbered(layers, 0)
    }

    /// Paths with other names and contents than those of any other number.
    pub fn numbered(layers: Layers, number: usize) -> Self {
        let placeholder = StorePathHash::new([0; 20]).to_string();
        let hash_part = |place: usize| {
            let mut bytes = [1; 20];
            bytes[8..16].copy_from_slice(&(number as u64).to_be_bytes());
            bytes[..8].copy_from_slice(&(place as u64 + 1).to_be_bytes());
            StorePathHash::new(bytes).to_string()
        };
        let samples = layers.texts.iter().enumerate().map(|(place, text)| {
            let needs = text.needs.iter().map(|&need| format!("{}-sample-0", hash_part(need)));
            let needs = needs.collect::<Vec<_>>().join(" ");
            let padding = Noise::new(text.contents).bytes(text.length);
            let number = number.to_string();
            let contents = [needs.as_bytes(), number.as_bytes(), &padding].concat();
            let mut sample = sample(0, &contents);
            let own = hash_part(place);
            for text in [&mut sample.store_path, &mut sample.narinfo_path, &mut sample.narinfo] {
                *text = text.replace(&placeholder, &own);
            }
            let narinfo =
                sample.narinfo.replace("References: \n", &format!("References: {needs}\n"));
            Sample { narinfo, ..sample }
        });
        Self { samples: samples.collect(), layers }
    }

    /// The keys of all narinfos.
    pub fn narinfos(&self) -> Vec<String> {
        let keys = self.samples.iter().map(|sample| sample.narinfo_path.trim_start_matches('/'));
        keys.map(str::to_owned).collect()
    }

    /// The indices of the closure of this root, which comes last.
    fn closure(&self, root: usize) -> Vec<usize> {
        self.layers.closure(self.layers.roots[root])
    }
}

/// A client with one connection.
pub struct PlainClient<'a> {
    wire: Wire,
    paths: &'a Paths,
}

impl<'a> PlainClient<'a> {
    pub fn new(address: &str, paths: &'a Paths) -> Self {
        Self { wire: Wire::to_address(address), paths }
    }

    /// Does what `nix copy --to` does: looks for each path, and uploads the missing ones.
    pub fn upload(&mut self, root: usize) -> Result<(), String> {
        let closure = self.paths.closure(root);
        let mut missing = Vec::new();
        for place in closure {
            let sample = &self.paths.samples[place];
            match self.wire.request("GET", &sample.narinfo_path, b"").status {
                200 => {}
                404 => missing.push(sample),
                status => return Err(format!("{}: {status}", sample.narinfo_path)),
            }
        }
        for sample in missing {
            if self.wire.request("HEAD", &sample.nar_path, b"").status == 404 {
                let response = self.wire.request("PUT", &sample.nar_path, &sample.nar);
                check_stored(&sample.nar_path, &response)?;
            }
            let narinfo = sample.narinfo.as_bytes();
            let response = self.wire.request("PUT", &sample.narinfo_path, narinfo);
            check_stored(&sample.narinfo_path, &response)?;
        }
        Ok(())
    }

    /// Does what `nix copy --from` does: reads the closure of a root. Returns false if the root is
    /// absent; an error names any other absent object.
    pub fn substitute(&mut self, root: usize) -> Result<bool, String> {
        let closure = self.paths.closure(root);
        let samples: Vec<&Sample> =
            closure.iter().rev().map(|&place| &self.paths.samples[place]).collect();
        for sample in &samples {
            let response = self.wire.request("GET", &sample.narinfo_path, b"");
            if response.status == 404 && sample.store_path == samples[0].store_path {
                return Ok(false);
            }
            check_read(&sample.narinfo_path, &response, sample.narinfo.as_bytes())?;
        }
        for sample in &samples {
            let response = self.wire.request("GET", &sample.nar_path, b"");
            check_read(&sample.nar_path, &response, &sample.nar)?;
        }
        Ok(true)
    }
}

fn check_stored(path: &str, response: &RawResponse) -> Result<(), String> {
    match response.status {
        200 | 201 => Ok(()),
        status => Err(format!("PUT {path}: {status} {}", response.text())),
    }
}

fn check_read(path: &str, response: &RawResponse, expected: &[u8]) -> Result<(), String> {
    match response.status {
        200 if response.body == expected => Ok(()),
        status => Err(format!("GET {path}: {status} {}", response.text())),
    }
}
