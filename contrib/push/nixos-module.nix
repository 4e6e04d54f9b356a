# For builders: what is built is uploaded to a cache, and no build waits for it.
{
  config,
  lib,
  pkgs,
  ...
}:

let
  inherit (lib) mkOption types;

  cfg = config.services.nix-stored-push;

  # The scripts have their defaults from here too.
  directory = "/var/lib/nix-stored-push";
  roots = lib.optionalString cfg.keepQueued "/nix/var/nix/gcroots/nix-stored-push";

  hook = pkgs.writeShellScript "nix-stored-push-hook" ''
    export NIX_PUSH_ROOTS=${roots}
    export PATH=${config.nix.package}/bin:${pkgs.coreutils}/bin
    ${builtins.readFile ./nix-stored-push-hook}
  '';

  upload = pkgs.writeShellScript "nix-stored-push" (builtins.readFile ./nix-stored-push);

  credentials =
    lib.optionalAttrs (cfg.signingKeyFile != null) { NIX_PUSH_KEY = cfg.signingKeyFile; }
    // lib.optionalAttrs (cfg.netrcFile != null) { NIX_PUSH_NETRC = cfg.netrcFile; };

  secretFile =
    example: description:
    mkOption {
      type = types.nullOr (
        types.pathWith {
          absolute = true;
          inStore = false;
        }
      );
      default = null;
      inherit example;
      description = ''
        ${description} Only root needs to be able to read it: systemd hands it to the service.
      '';
    };
in
{
  options.services.nix-stored-push = {
    enable = lib.mkEnableOption ''
      the upload of everything that is built here to a Nix cache. A post-build-hook notes each build
      in {file}`${directory}/queue`, and a service uploads it from there
    '';

    to = mkOption {
      type = types.strMatching "[a-z0-9+]+://.+";
      example = "https://cache.example.org";
      description = "The cache, as `nix copy --to` takes it.";
    };

    signingKeyFile = secretFile "/run/secrets/cache.secret" ''
      File with the key that signs what was built here, made by `nix key generate-secret`.
    '';

    netrcFile = secretFile "/run/secrets/netrc" ''
      A netrc file with the password for the cache.
    '';

    keepQueued = mkOption {
      type = types.bool;
      default = true;
      description = "Whether what waits to be uploaded is kept from Nix's garbage collector.";
    };

    batch = mkOption {
      type = types.ints.positive;
      default = 100;
      description = "How many builds are uploaded at a time.";
    };

    tries = mkOption {
      type = types.ints.positive;
      default = 10;
      description = ''
        How often a path is tried that alone has trouble, before it is set aside in
        {file}`${directory}/failed`. While the cache cannot be reached, or does not accept the
        password, everything waits, however long.
      '';
    };

    timeout = mkOption {
      type = types.strMatching "[0-9]+[smhd]?";
      default = "6h";
      description = "How long one upload may take.";
    };
  };

  config = lib.mkIf cfg.enable {
    nix.settings.post-build-hook = hook;

    systemd.services.nix-stored-push = {
      description = "Upload what was built to a Nix cache";
      wants = [ "network-online.target" ];
      after = [
        "network-online.target"
        "nix-daemon.socket"
      ];

      path = [
        config.nix.package
        pkgs.coreutils
        pkgs.findutils
        pkgs.gnugrep
        pkgs.gnused
        pkgs.util-linux
      ];

      environment = {
        NIX_PUSH_TO = lib.replaceStrings [ "%" ] [ "%%" ] cfg.to;
        NIX_PUSH_DIR = directory;
        NIX_PUSH_ROOTS = roots;
        NIX_PUSH_BATCH = toString cfg.batch;
        NIX_PUSH_TRIES = toString cfg.tries;
        NIX_PUSH_TIMEOUT = cfg.timeout;
        NIX_REMOTE = "daemon";
        XDG_CACHE_HOME = "%C/nix-stored-push";
      }
      // lib.mapAttrs (name: _: "%d/${name}") credentials;

      serviceConfig = {
        ExecStart = upload;
        LoadCredential = lib.mapAttrsToList (name: file: "${name}:${file}") credentials;
        StateDirectory = "nix-stored-push";
        StateDirectoryMode = "0700";
        CacheDirectory = "nix-stored-push";
        # What is in the queue waits there meanwhile.
        Restart = "on-failure";
        RestartSec = 30;
        # Something was set aside, or the settings are wrong: the next start would not change that.
        RestartPreventExitStatus = [
          2
          64
        ];
        Nice = 10;
        IOSchedulingClass = "idle";

        # Root, for Nix to trust its signatures, and nothing that root otherwise can.
        ReadWritePaths = "-/nix/var/nix/gcroots";
        CapabilityBoundingSet = "";
        DevicePolicy = "closed";
        KeyringMode = "private";
        LockPersonality = true;
        MemoryDenyWriteExecute = true;
        NoNewPrivileges = true;
        PrivateDevices = true;
        PrivateMounts = true;
        PrivateTmp = true;
        ProcSubset = "pid";
        ProtectClock = true;
        ProtectControlGroups = true;
        ProtectHome = true;
        ProtectHostname = true;
        ProtectKernelLogs = true;
        ProtectKernelModules = true;
        ProtectKernelTunables = true;
        ProtectProc = "invisible";
        ProtectSystem = "strict";
        RemoveIPC = true;
        RestrictAddressFamilies = [
          "AF_INET"
          "AF_INET6"
          "AF_UNIX"
        ];
        RestrictNamespaces = true;
        RestrictRealtime = true;
        RestrictSUIDSGID = true;
        SystemCallArchitectures = "native";
        SystemCallErrorNumber = "EPERM";
        SystemCallFilter = [
          "@system-service"
          "~@privileged"
        ];
        UMask = "0077";
      };
    };

    systemd.paths.nix-stored-push = {
      description = "Wait for builds to upload to a Nix cache";
      wantedBy = [ "paths.target" ];
      pathConfig = {
        DirectoryNotEmpty = "${directory}/queue";
        MakeDirectory = true;
        DirectoryMode = "0700";
      };
    };

    # What waits after a boot, or after the uploader was given up on.
    systemd.timers.nix-stored-push = {
      wantedBy = [ "timers.target" ];
      timerConfig = {
        OnBootSec = "2min";
        OnUnitInactiveSec = "15min";
      };
    };
  };
}
