# Two NixOS machines: a cache, and a builder with the upload queue.
{
  self,
  lib,
  pkgs,
}:

let
  url = "http://cache:8100";
  # A public test key, trusted only by these machines.
  publicKey = "cache.test-1:wAeZxbkuz3z4P622XGrk571eKC7b9jkxwaANwuDRIwY=";
  secretKey = "cache.test-1:EBpfjalLmJCLMVEcbaoHMis/3YkYvqtEe1L6jA7Unt/AB5nFuS7PfPg/rbZcauTnvV4oLtv2OTHBoA3C4NEjBg==";
in
pkgs.testers.runNixOSTest {
  name = "nix-stored-push";

  defaults.nix.settings = {
    experimental-features = [ "nix-command" ];
    substituters = lib.mkForce [ ];
  };

  nodes.cache = {
    imports = [ self.nixosModules.default ];
    environment.etc."nix-stored/write".text = "writer-password\n";
    services.nix-stored = {
      enable = true;
      openFirewall = true;
      socketActivation.enable = true;
      gc.enable = true;
      writePasswordFile = "/etc/nix-stored/write";
      settings = {
        NIX_STORED_LISTEN_INTERFACE = "[::]:8100";
        NIX_STORED_USER_WRITE = "writer";
        NIX_STORED_TRUSTED_PUBLIC_KEYS = [ publicKey ];
      };
    };
  };

  nodes.builder = {
    imports = [ self.nixosModules.push ];
    # Builds survive a restart of the machine.
    virtualisation.writableStoreUseTmpfs = false;
    # In production, secrets come from another module.
    environment.etc = {
      "push/key".text = secretKey;
      "push/netrc".text = "machine cache login writer password writer-password";
      "greeting.nix".text = ''
        { name }:
        derivation {
          inherit name;
          system = builtins.currentSystem;
          builder = "/bin/sh";
          args = [ "-c" "echo ''${name} > $out" ];
        }
      '';
    };
    services.nix-stored-push = {
      enable = true;
      to = url;
      signingKeyFile = "/etc/push/key";
      netrcFile = "/etc/push/netrc";
    };
  };

  testScript = ''
    url = "${url}"
    queue = "/var/lib/nix-stored-push/queue"


    def build(name):
        return builder.succeed(
            f"nix-build --no-out-link --argstr name {name} /etc/greeting.nix"
        ).strip()


    def wait_for(path):
        hash_part = path.removeprefix("/nix/store/").split("-")[0]
        builder.wait_until_succeeds(f"curl --fail --silent {url}/{hash_part}.narinfo")


    start_all()
    cache.wait_for_unit("nix-stored.service")
    builder.wait_for_unit("multi-user.target")
    builder.wait_for_unit("nix-stored-push.path")

    with subtest("a build is uploaded, and nothing is left"):
        wait_for(build("world"))
        builder.wait_until_fails(f"ls {queue} | grep .")

    with subtest("what is built while the cache is away survives a restart of the builder"):
        cache.succeed("systemctl stop nix-stored.socket nix-stored.service")
        moon = build("moon")
        builder.succeed(f"ls {queue} | grep .")
        builder.shutdown()
        builder.start()
        builder.wait_for_unit("nix-stored-push.path")
        builder.succeed("nix-store --gc")
        cache.succeed("systemctl start nix-stored.socket nix-stored.service")
        wait_for(moon)

    with subtest("a restart of the cache refuses no connection"):
        cache.succeed("systemctl stop nix-stored.service")
        builder.succeed(f"curl --fail --silent {url}/nix-cache-info")
        cache.succeed("systemctl reload nix-stored.service")

    with subtest("a collection at a set time works"):
        cache.succeed("systemctl start nix-stored-gc.service")
        cache.succeed("systemctl list-timers --all | grep nix-stored-gc")

    with subtest("the services can do little"):
        for unit in ["nix-stored.service", "nix-stored-gc.service"]:
            print(cache.succeed(f"systemd-analyze security --no-pager --threshold=15 {unit}"))
  '';
}
