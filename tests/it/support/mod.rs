//! What the tests share: the daemon as a child process, a private Nix, and the directories both
//! live in.
#![allow(dead_code, reason = "a toolbox: not every tool is in use at every time")]

pub mod audit;
#[cfg(feature = "pages")]
pub mod browser;
pub mod cache;
pub mod closures;
pub mod daemon;
pub mod disk;
pub mod fixture;
#[cfg(feature = "upstream")]
pub mod neighbour;
pub mod nix;
pub mod noise;
pub mod objects;
pub mod packing;
pub mod paths;
pub mod plain_client;
pub mod rounds;
pub mod scratch;
pub mod served;
#[cfg(feature = "upstream")]
pub mod scripted;
pub mod trace;
pub mod tree;
pub mod wire;
