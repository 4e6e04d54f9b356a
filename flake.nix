{
  description = "A standalone HTTP binary cache for Nix: plain `nix copy` in, plain substituters out";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";

  outputs =
    { self, nixpkgs }:
    let
      inherit (nixpkgs) lib;

      forAllSystems =
        f:
        lib.genAttrs [
          "x86_64-linux"
          "aarch64-linux"
        ] (system: f nixpkgs.legacyPackages.${system});

      manifest = (lib.importTOML ./Cargo.toml).package;

      build =
        {
          lib,
          rustPlatform,
          installShellFiles,
        }:
        rustPlatform.buildRustPackage {
          pname = manifest.name;
          inherit (manifest) version;

          src = ./.;
          cargoLock.lockFile = ./Cargo.lock;

          # The other tests need a network or a private Nix store.
          cargoTestFlags = [ "--lib" ];

          nativeBuildInputs = [ installShellFiles ];
          postInstall = ''
            installManPage contrib/man/nix-stored.1
            installShellCompletion contrib/completions/{nix-stored.bash,_nix-stored,nix-stored.fish}
          '';

          meta = {
            inherit (manifest) description;
            homepage = manifest.repository;
            license = lib.licenses.mit;
            mainProgram = "nix-stored";
            platforms = lib.platforms.unix;
          };
        };

      packageFor = pkgs: self.packages.${pkgs.stdenv.hostPlatform.system}.nix-stored;
    in
    {
      overlays.default = final: _prev: {
        nix-stored = final.callPackage build { };
      };

      nixosModules = rec {
        default = nix-stored;
        nix-stored =
          { lib, pkgs, ... }:
          {
            imports = [ ./nixos-module.nix ];
            services.nix-stored.package = lib.mkDefault (packageFor pkgs);
          };
        # For builders; needs no package.
        nix-stored-push = ./contrib/push/nixos-module.nix;
        push = nix-stored-push;
      };

      packages = forAllSystems (pkgs: rec {
        default = nix-stored;
        inherit (self.overlays.default pkgs pkgs) nix-stored;
      });

      apps = forAllSystems (pkgs: {
        default = {
          type = "app";
          program = lib.getExe (packageFor pkgs);
          meta = { inherit (manifest) description; };
        };
      });

      devShells = forAllSystems (pkgs: {
        default = pkgs.mkShell {
          packages = with pkgs; [
            caddy
            cargo
            cargo-fuzz
            clippy
            curl
            mandoc
            nginx
            nix
            rust-analyzer
            rustc
            rustfmt
            shellcheck
            strace
            systemd
            yq
          ];
          env.RUST_SRC_PATH = pkgs.rustPlatform.rustLibSrc;
        };
      });

      formatter = forAllSystems (pkgs: pkgs.nixfmt-tree);

      checks = forAllSystems (pkgs: {
        package = packageFor pkgs;

        # The units that NixOS generates from the modules, with their exposure by systemd-analyze.
        module =
          let
            machine = nixpkgs.lib.nixosSystem {
              modules = [
                self.nixosModules.default
                self.nixosModules.push
                {
                  nixpkgs.hostPlatform = pkgs.stdenv.hostPlatform.system;
                  system.stateVersion = lib.trivial.release;
                  services.nix-stored = {
                    enable = true;
                    gc.enable = true;
                    socketActivation.enable = true;
                  };
                  services.nix-stored-push = {
                    enable = true;
                    to = "http://cache.example.org:8100";
                  };
                }
              ];
            };
            inherit (machine.config.systemd) units;
            exposed = name: ''
              systemd-analyze security --offline=true --no-pager --threshold=15 \
                ${units.${name}.unit}/${name} | tee --append $out
            '';
          in
          # nix-stored-push.service runs as root, so that Nix accepts its signatures: no exposure check.
          pkgs.runCommand "nix-stored-module" { nativeBuildInputs = [ pkgs.systemd ]; } ''
            ${exposed "nix-stored.service"}
            ${exposed "nix-stored-gc.service"}
            test -e ${units."nix-stored-push.service".unit}/nix-stored-push.service
            test -e ${units."nix-stored-push.path".unit}/nix-stored-push.path
          '';

        vm = import ./tests/nixos-module/vm.nix { inherit self lib pkgs; };

        vm-push = import ./tests/nixos-module/vm-push.nix { inherit self lib pkgs; };
      });
    };
}
