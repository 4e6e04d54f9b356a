//! What is shipped beside the program: README and documentation snippets, man page, shell completions, NixOS modules,
//! systemd units, Docker and proxy configurations, the Debian package, and the upload queue for builders.
//!
//! Programs: caddy, mandoc, nginx, nix, shellcheck, systemd-analyze, yq.
mod contrib;
mod dependencies;
mod manual;
mod nixos_module;
mod push;
mod readme;
mod units;
