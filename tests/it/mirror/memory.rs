//! The memory for facts about upstreams is bounded.

use nix_stored::nix::StorePathHash;

use super::mirror_of;
use crate::support::objects::sample;
use crate::support::scripted_upstream::ScriptedUpstream;
use crate::support::wire::Wire;

const MIB: usize = 1024 * 1024;

#[test]
fn remembered_narinfos_are_bounded_by_their_bytes() {
    const COUNT: usize = 400;
    let upstream = ScriptedUpstream::start();
    let (one, line) = (sample(1, b"x"), format!("X-Padding: {}\n", "x".repeat(MIB - 1000)));
    let names: Vec<String> = (0..COUNT)
        .map(|number| {
            let mut bytes = [1; 20];
            bytes[..8].copy_from_slice(&number.to_le_bytes());
            StorePathHash::new(bytes).to_string()
        })
        .collect();
    for name in &names {
        let text = one.narinfo.replace(&one.narinfo_path[1..33], name) + &line;
        upstream.has(&format!("/{name}.narinfo"), text.as_bytes());
    }
    let mirror = mirror_of(&[&upstream.url()]).start();
    let mut wire = Wire::to(&mirror);
    for name in &names {
        let received = wire.request("GET", &format!("/{name}.narinfo"), b"");
        assert_eq!((received.status, received.body.len() > MIB - 1000), (200, true));
    }
    // At most twice 64 MiB of text, and the memory for the requests.
    let peak = mirror.peak_memory();
    assert!(peak < 220 * MIB, "{} MiB", peak / MIB);
}
