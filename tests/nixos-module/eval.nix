# Configurations of the NixOS modules, which the tests evaluate with
#
#   nix-instantiate --eval --strict --json tests/nixos-module/eval.nix
let
  inherit (import ./stand-in.nix) environment evaluate units;

  daemon = evaluate ../../nixos-module.nix "nix-stored";
  push = evaluate ../../contrib/push/nixos-module.nix "nix-stored-push";

  report =
    given:
    let
      inherit (daemon ({ enable = true; } // given)) config;
      service = config.systemd.services.nix-stored;
    in
    {
      environment = environment service;
      serviceConfig = service.serviceConfig;
      units = units config;
      loadCredential = service.serviceConfig.LoadCredential;
      failedAssertions = map (failed: failed.message) (
        builtins.filter (one: !one.assertion) config.assertions
      );
      warnings = config.warnings;
      firewallPorts = config.networking.firewall.allowedTCPPorts;
      users = builtins.attrNames (config.users.users or { });
      directories = builtins.attrNames config.systemd.tmpfiles.settings.nix-stored;
    };

  reportPush =
    given:
    let
      inherit (push ({ enable = true; } // given)) config;
    in
    {
      units = units config;
      paths = config.systemd.paths;
      timers = config.systemd.timers;
      hook = config.nix.settings.post-build-hook;
    };

  settingsOptions = (daemon { }).options.services.nix-stored.settings.type.module.options;

  listenOn = interface: {
    openFirewall = true;
    settings.NIX_STORED_LISTEN_INTERFACE = interface;
  };
in
{
  # The text of each default, or null if the variable is unset.
  defaults =
    let
      inherit (daemon { enable = true; }) config;
    in
    builtins.mapAttrs (name: _: config.systemd.services.nix-stored.environment.${name}) settingsOptions;

  disabled = (daemon { }).config;

  # Whether the types refuse values that the daemon would refuse.
  refused =
    let
      isRefused = given: !(builtins.tryEval (builtins.deepSeq (report given) true)).success;
    in
    {
      unknownOption = isRefused { port = 8100; };
      relativePath = isRefused { settings.NIX_STORED_PATH = "cache"; };
      logLevel = isRefused { settings.NIX_STORED_LOG_LEVEL = "loud"; };
      priority = isRefused { settings.NIX_STORED_PRIORITY = -1; };
      size = isRefused { settings.NIX_STORED_MAX_UPLOAD_SIZE = "8 gigabytes"; };
      passwordInTheStore = isRefused { readPasswordFile = "${builtins.storeDir}/password"; };
      keyInTheStore = isRefused { tlsKeyFile = "${builtins.storeDir}/key.pem"; };
      age = isRefused {
        gc = {
          enable = true;
          maxAge = "long";
        };
      };
    };

  cases = {
    defaults = report { };

    full = report {
      openFirewall = true;
      readPasswordFile = "/run/secrets/read";
      writePasswordFile = "/run/secrets/write";
      upstreamNetrcFile = "/run/secrets/netrc";
      tlsCertFile = "/var/lib/acme/cache/fullchain.pem";
      tlsKeyFile = "/var/lib/acme/cache/key.pem";
      tlsClientCaFile = "${builtins.storeDir}/ca.pem";
      environmentFile = "/run/secrets/s3";
      gc = {
        enable = true;
        maxAge = "90d";
      };
      settings = {
        NIX_STORED_PATH = "s3://cache?endpoint=minio.example.org&region=a%2Fb";
        NIX_STORED_LISTEN_INTERFACE = "[::]:8100";
        NIX_STORED_USER_READ = "reader";
        NIX_STORED_USER_WRITE = "writer";
        NIX_STORED_ANONYMOUS_WRITE = false;
        NIX_STORED_PRIORITY = 10;
        NIX_STORED_WANT_MASS_QUERY = false;
        NIX_STORED_TRUSTED_PUBLIC_KEYS = [
          "one.example.org-1:AAAA"
          "two.example.org-1:BBBB"
        ];
        NIX_STORED_REQUIRE_REFERENCES = true;
        NIX_STORED_MAX_UPLOAD_SIZE = "8G";
        NIX_STORED_MIN_FREE_SPACE = 1024;
        NIX_STORED_FREEFORM = "kept";
      };
    };

    bad = report {
      openFirewall = true;
      writePasswordFile = "/run/secrets/write";
      settings = {
        NIX_STORED_LISTEN_INTERFACE = "unix:/run/nix-stored/http:8100";
        NIX_STORED_USER_READ = "reader";
        NIX_STORED_USER_READ_PASS = "secret";
        NIX_STORED_USER_WRITE_PASSFILE = "/run/secrets/write";
        NIX_STORED_TLS_KEY = "/run/secrets/key";
      };
      tlsClientCaFile = "/run/secrets/ca";
    };

    stateDirectory = report { settings.NIX_STORED_PATH = "/var/lib/caches/nix"; };
    foreignDirectory = report { settings.NIX_STORED_PATH = "/srv/cache"; };
    socket = report { settings.NIX_STORED_LISTEN_INTERFACE = "unix:/run/nix-stored/http"; };
    privilegedPort = report (listenOn "0.0.0.0:80");
    loopback = report (listenOn "127.0.0.1:8100");

    activated = report (
      listenOn "[::]:80"
      // {
        socketActivation.enable = true;
      }
    );
    activatedSocket = report {
      socketActivation.enable = true;
      settings.NIX_STORED_LISTEN_INTERFACE = "unix:/run/nix-stored/http";
    };
    activatedSocketForAll = report {
      socketActivation.enable = true;
      settings.NIX_STORED_LISTEN_INTERFACE = "unix:/run/nix-stored/http?mode=0666";
    };
    activatedByName = report {
      socketActivation.enable = true;
      settings.NIX_STORED_LISTEN_INTERFACE = "localhost:8100";
    };
  };

  push = {
    plain = reportPush { to = "http://cache.example.org:8100"; };
    full = reportPush {
      to = "https://cache.example.org?compression=zstd&x=a%2Fb";
      signingKeyFile = "/run/secrets/cache.secret";
      netrcFile = "/run/secrets/netrc";
      keepQueued = false;
    };
  };
}
