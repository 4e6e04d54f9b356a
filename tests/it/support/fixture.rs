//! One store with everything in `closure.nix`, built and signed once, and read by all tests.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::nix::{Nix, utf8};
use super::paths::SigningKey;

/// The attributes whose outputs are known before they are built.
const ATTRIBUTES: [&str; 5] = ["app", "split", "odd", "debug", "fixed"];

/// The attributes that are content-addressed derivations.
const ADDRESSED: [&str; 2] = ["addressed", "addressedUser"];

pub struct Fixture {
    nix: Nix,
    key: SigningKey,
    outputs: Vec<(&'static str, Vec<String>)>,
}

/// The shared store. The first call builds it, which takes a second.
#[track_caller]
pub fn fixture() -> &'static Fixture {
    static FIXTURE: OnceLock<Fixture> = OnceLock::new();
    FIXTURE.get_or_init(Fixture::build)
}

impl Fixture {
    fn build() -> Self {
        let nix = Nix::new();
        let key = nix.signing_key("fixture-1");
        let builder = nix.clone().with("secret-key-files", utf8(&key.secret));
        let file = closure_nix();
        let outputs = ATTRIBUTES
            .into_iter()
            .chain(ADDRESSED)
            .map(|name| (name, builder.build(&file, name)))
            .collect();
        Self { nix, key, outputs }
    }

    /// The shared store, used from a new home. Nothing may be added to it.
    pub fn nix(&self) -> Nix {
        self.nix.fresh_home()
    }

    /// The public key of all signatures in the store.
    pub fn public_key(&self) -> &str {
        &self.key.public
    }

    /// An empty store that trusts the shared store's key.
    pub fn reader(&self) -> Nix {
        Nix::new().with("trusted-public-keys", self.public_key())
    }

    /// The outputs of an attribute.
    #[track_caller]
    pub fn outputs(&self, attribute: &str) -> Vec<String> {
        let found = self.outputs.iter().find(|(name, _)| *name == attribute);
        found.unwrap_or_else(|| panic!("the fixture has no {attribute}")).1.clone()
    }

    /// The only output of an attribute.
    #[track_caller]
    pub fn output(&self, attribute: &str) -> String {
        let outputs = self.outputs(attribute);
        assert_eq!(outputs.len(), 1, "{attribute} has several outputs");
        outputs[0].clone()
    }

    /// All outputs that are known before they are built.
    pub fn all(&self) -> Vec<String> {
        ATTRIBUTES.iter().flat_map(|name| self.outputs(name)).collect()
    }
}

/// The file that the shared store is built from.
pub fn closure_nix() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/support/closure.nix")
}
