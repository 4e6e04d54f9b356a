//! The requests of `nix copy`, without the tenth of a second that Nix needs to start.

use nix_stored::nix::StorePathHash;

use super::closures::Layers;
use super::noise::Noise;
use super::objects::{Sample, sample};
use super::wire::{Received, Wire};

/// Store paths in layers, as a client has them.
pub struct Paths {
    pub layers: Layers,
    samples: Vec<Sample>,
}

impl Paths {
    pub fn new(layers: Layers) -> Self {
        Self::numbered(layers, 0)
    }

    /// Paths that another number has not, with other contents.
    pub fn numbered(layers: Layers, number: usize) -> Self {
        let nobody = StorePathHash::new([0; 20]).to_string();
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
                *text = text.replace(&nobody, &own);
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

    /// The places of what the root with this number needs, itself last.
    fn closure(&self, root: usize) -> Vec<usize> {
        self.layers.closure(self.layers.roots[root])
    }
}

/// One connection.
pub struct PlainClient<'a> {
    wire: Wire,
    paths: &'a Paths,
}

impl<'a> PlainClient<'a> {
    pub fn new(address: &str, paths: &'a Paths) -> Self {
        Self { wire: Wire::to_address(address), paths }
    }

    /// `nix copy --to`: asks what is there, and sends the rest. An error says what went wrong.
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
                let answer = self.wire.request("PUT", &sample.nar_path, &sample.nar);
                is_taken(&sample.nar_path, &answer)?;
            }
            let narinfo = sample.narinfo.as_bytes();
            let answer = self.wire.request("PUT", &sample.narinfo_path, narinfo);
            is_taken(&sample.narinfo_path, &answer)?;
        }
        Ok(())
    }

    /// `nix copy --from`: reads a root and all that it needs. False if the root is not there; an
    /// error says what else is not.
    pub fn substitute(&mut self, root: usize) -> Result<bool, String> {
        let closure = self.paths.closure(root);
        let samples: Vec<&Sample> =
            closure.iter().rev().map(|&place| &self.paths.samples[place]).collect();
        for sample in &samples {
            let answer = self.wire.request("GET", &sample.narinfo_path, b"");
            if answer.status == 404 && sample.store_path == samples[0].store_path {
                return Ok(false);
            }
            is_read(&sample.narinfo_path, &answer, sample.narinfo.as_bytes())?;
        }
        for sample in &samples {
            let answer = self.wire.request("GET", &sample.nar_path, b"");
            is_read(&sample.nar_path, &answer, &sample.nar)?;
        }
        Ok(true)
    }
}

fn is_taken(path: &str, answer: &Received) -> Result<(), String> {
    match answer.status {
        200 | 201 => Ok(()),
        status => Err(format!("PUT {path}: {status} {}", answer.text())),
    }
}

fn is_read(path: &str, answer: &Received, expected: &[u8]) -> Result<(), String> {
    match answer.status {
        200 if answer.body == expected => Ok(()),
        status => Err(format!("GET {path}: {status} {}", answer.text())),
    }
}
