# Three NixOS machines: a cache, a builder and a consumer.
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

  netrc = user: "machine cache login ${user} password ${user}-password";
in
pkgs.testers.runNixOSTest {
  name = "nix-stored";

  defaults.nix.settings = {
    experimental-features = [ "nix-command" ];
    substituters = lib.mkForce [ ];
  };

  nodes.cache = {
    imports = [ self.nixosModules.default ];

    # In production, secrets come from another module.
    environment.etc = {
      "nix-stored/read".text = "reader-password\n";
      "nix-stored/write".text = "writer-password\n";
    };

    services.nix-stored = {
      enable = true;
      openFirewall = true;
      readPasswordFile = "/etc/nix-stored/read";
      writePasswordFile = "/etc/nix-stored/write";
      settings = {
        NIX_STORED_LISTEN_INTERFACE = "[::]:8100";
        NIX_STORED_USER_READ = "reader";
        NIX_STORED_USER_WRITE = "writer";
        NIX_STORED_TRUSTED_PUBLIC_KEYS = [ publicKey ];
      };
    };
  };

  nodes.builder =
    { config, pkgs, ... }:
    {
      environment.etc."nix/netrc".text = netrc "writer";

      environment.etc."greeting.nix".text = ''
        { name }:
        let
          write = name: text: derivation {
            inherit name;
            system = builtins.currentSystem;
            builder = "/bin/sh";
            args = [ "-c" "echo ''${text} > $out" ];
          };
        in
        write "greeting" (write "name" name)
      '';

      nix.settings = {
        secret-key-files = "${pkgs.writeText "secret-key" secretKey}";
        post-build-hook = pkgs.writeShellScript "upload" ''
          set -eu
          exec ${lib.getExe config.nix.package} copy --to ${url} $OUT_PATHS
        '';
      };
    };

  nodes.consumer = {
    environment.etc."nix/netrc".text = netrc "reader";

    nix.settings = {
      substituters = lib.mkForce [ url ];
      trusted-public-keys = lib.mkForce [ publicKey ];
      require-sigs = true;
    };
  };

  testScript = ''
    url = "${url}"


    def build(name):
        return builder.succeed(
            f"nix-build --no-out-link --argstr name {name} /etc/greeting.nix"
        ).strip()


    def status(arguments):
        return consumer.succeed(
            f"curl --silent --output /dev/null --write-out '%{{http_code}}' {arguments}"
        )


    def wait_for_cache():
        cache.wait_for_unit("nix-stored.service")
        cache.wait_for_open_port(8100)


    start_all()
    wait_for_cache()
    builder.wait_for_unit("multi-user.target")
    consumer.wait_for_unit("multi-user.target")

    with subtest("a build is uploaded as it ends"):
        path = build("world")
        hash_part = path.removeprefix("/nix/store/").split("-")[0]
        narinfo = f"{url}/{hash_part}.narinfo"
        cache.succeed(f"test -s /var/lib/nixStored/{hash_part}.narinfo")

    with subtest("wrong credentials are refused"):
        assert status(f"--user reader:reader-password {narinfo}") == "200"
        assert status(f"--user writer:writer-password {narinfo}") == "200"
        assert status(narinfo) == "401"
        assert status(f"--user reader:wrong {narinfo}") == "401"
        assert status(f"--user : {narinfo}") == "401"
        put = f"--upload-file /etc/os-release {narinfo}"
        assert status(put) == "401"
        assert status(f"--user writer:wrong {put}") == "401"
        assert status(f"--user reader:reader-password {put}") == "403"

    with subtest("an upload without a trusted signature is refused"):
        builder.succeed("echo unsigned > /tmp/unsigned")
        unsigned = builder.succeed("nix-store --add /tmp/unsigned").strip()
        builder.fail(f"nix copy --to {url} {unsigned}")

    with subtest("a client takes what it trusts, and the closure of it"):
        consumer.fail(f"nix-store --realise {path} --option trusted-public-keys '''")
        consumer.succeed(f"nix-store --realise {path}")
        assert consumer.succeed(f"cat $(cat {path})") == "world\n"

    with subtest("a restart loses nothing"):
        cache.succeed("systemctl restart nix-stored.service")
        wait_for_cache()
        consumer.succeed(f"nix copy --from {url} --to /tmp/after-restart {path}")

    with subtest("a power cut right after an upload loses nothing"):
        last = build("moon")
        cache.crash()
        cache.start()
        wait_for_cache()
        consumer.succeed(f"nix copy --from {url} --to /tmp/after-power-cut {path} {last}")

    with subtest("the service can do little, and tells no secrets"):
        print(cache.succeed("systemd-analyze security --no-pager --threshold=15 nix-stored.service"))
        cache.fail("journalctl --unit nix-stored.service | grep --fixed-strings -- -password")
  '';
}
