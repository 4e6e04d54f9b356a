# The errors in a snippet of the documentation, which is a flake with a system named `cache`, or a
# configuration.
{ file }:

let
  inherit (import ./stand-in.nix) evaluate lib units;

  snippet = import file;

  modules =
    if snippet ? outputs then
      (snippet.outputs {
        self = { };
        nixpkgs.lib.nixosSystem = system: system;
        nix-stored.nixosModules = {
          default = { };
          push = { };
        };
      }).nixosConfigurations.cache.modules
    else
      [ snippet ];

  known = {
    nix-stored = ../../nixos-module.nix;
    nix-stored-push = ../../contrib/push/nixos-module.nix;
  };

  check =
    service: given:
    let
      inherit (evaluate known.${service} service given) config;
    in
    builtins.deepSeq (units config) (
      map (failed: failed.message) (
        builtins.filter (one: !one.assertion) (config.assertions or [ ])
      )
    );
in
lib.concatMap (
  module:
  builtins.concatLists (
    lib.mapAttrsToList check (lib.filterAttrs (name: _: known ? ${name}) (module.services or { }))
  )
) modules
