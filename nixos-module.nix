{
  config,
  lib,
  pkgs,
  ...
}:

let
  inherit (lib) mkOption types;

  cfg = config.services.nix-stored;

  path = cfg.settings.NIX_STORED_PATH;
  listen = cfg.settings.NIX_STORED_LISTEN_INTERFACE;

  # systemd makes and owns what is below /var/lib.
  # Any other directory needs an owner who exists before the service does.
  inStateDirectory = lib.hasPrefix "/var/lib/" path;
  isForeignDirectory = lib.hasPrefix "/" path && !inStateDirectory;

  # A reverse proxy enters a socket as a member of the group.
  isSocket = lib.hasPrefix "unix:" listen;

  # The slash keeps out socket paths, which may hold a colon.
  portMatch = builtins.match "[^/]*:([0-9]+)" listen;
  port = if portMatch == null then null else lib.toInt (builtins.head portMatch);
  isPrivilegedPort = port != null && port < 1024;
  isLoopback = builtins.match "(127\\.[0-9.]+|localhost|\\[::1]):[0-9]+" listen != null;

  access = {
    read = {
      variable = "NIX_STORED_USER_READ";
      option = "readPasswordFile";
    };
    write = {
      variable = "NIX_STORED_USER_WRITE";
      option = "writePasswordFile";
    };
  };
  credentials = lib.filterAttrs (_: { option, ... }: cfg.${option} != null) access;

  # The text of a variable. To systemd a percent sign is a specifier, to an S3 URL it is not.
  render =
    value:
    if value == null then
      null
    else if lib.isBool value then
      (if value then "1" else "0")
    else
      lib.replaceStrings [ "%" ] [ "%%" ] (toString value);

  passwordFile =
    who:
    mkOption {
      type = types.nullOr (
        types.pathWith {
          absolute = true;
          inStore = false;
        }
      );
      default = null;
      example = "/run/secrets/nix-stored-${who}";
      description = ''
        File with the password of the ${who} user. Only root needs to be able to read it:
        systemd hands it to the service. One newline at its end is no part of the password.
      '';
    };

  duration = types.strMatching "[0-9]+[smhdw]";
  size = types.either types.ints.unsigned (types.strMatching "[0-9]+[KMGT]?");

  settings = {
    freeformType = types.attrsOf (
      types.nullOr (
        types.oneOf [
          types.bool
          types.int
          types.str
          (types.listOf types.str)
        ]
      )
    );

    options = {
      NIX_STORED_PATH = mkOption {
        type = types.strMatching "(/|s3://).+";
        default = "/var/lib/nixStored";
        description = ''
          Where the cache is kept: a directory, or an `s3://` URL in Nix's own form. Outside
          {file}`/var/lib`, the directory is made for, and owned by, the user `nix-stored`.
        '';
      };

      NIX_STORED_LISTEN_INTERFACE = mkOption {
        type = types.str;
        default = "127.0.0.1:8100";
        example = "[::]:8100";
        description = ''
          `host:port`, `[v6]:port`, or `unix:/path`. A socket belongs in {file}`/run/nix-stored`;
          who connects to it, such as a reverse proxy, has to be in the group `nix-stored`.
        '';
      };

      NIX_STORED_USER_READ = mkOption {
        type = types.str;
        default = "";
        description = "Who may read, with the password in {option}`readPasswordFile`. Empty: everyone.";
      };

      NIX_STORED_USER_WRITE = mkOption {
        type = types.str;
        default = "";
        description = "Who may upload, and read, with the password in {option}`writePasswordFile`.";
      };

      NIX_STORED_ANONYMOUS_WRITE = mkOption {
        type = types.nullOr types.bool;
        default = null;
        description = ''
          Whether everyone may upload while there are no users at all. Unset: only over a
          loopback address or a unix socket.
        '';
      };

      NIX_STORED_LOG_LEVEL = mkOption {
        type = types.enum [
          "error"
          "warn"
          "warning"
          "info"
          "debug"
          "trace"
        ];
        default = "info";
        description = "The least serious messages to log.";
      };

      NIX_STORED_LOG_FORMAT = mkOption {
        type = types.enum [
          "text"
          "json"
        ];
        default = "text";
        description = "How a line of the log is written.";
      };

      NIX_STORED_STORE_DIR = mkOption {
        type = types.strMatching "/.+";
        default = "/nix/store";
        description = "The store directory of the paths in this cache.";
      };

      NIX_STORED_PRIORITY = mkOption {
        type = types.ints.unsigned;
        default = 30;
        description = "Which cache clients ask first: the one with the lowest number.";
      };

      NIX_STORED_WANT_MASS_QUERY = mkOption {
        type = types.bool;
        default = true;
        description = "Whether clients may ask for many paths at once.";
      };

      NIX_STORED_TRUSTED_PUBLIC_KEYS = mkOption {
        type = types.listOf types.str;
        default = [ ];
        example = [ "cache.example.org-1:wAeZxbkuz3z4P622XGrk571eKC7b9jkxwaANwuDRIwY=" ];
        description = "Uploads need a signature by one of these keys. Empty: they need none.";
      };

      NIX_STORED_VERIFY = mkOption {
        type = types.enum [
          "nar"
          "file"
        ];
        default = "nar";
        description = "What an upload is checked against: its unpacked NAR too, or the compressed file only.";
      };

      NIX_STORED_REQUIRE_REFERENCES = mkOption {
        type = types.bool;
        default = false;
        description = "Whether to refuse a path whose references are not in the cache.";
      };

      NIX_STORED_MAX_UPLOAD_SIZE = mkOption {
        type = types.nullOr size;
        default = null;
        example = "8G";
        description = "Larger uploads are refused. Bytes, or with one of the units `K`, `M`, `G`, `T`.";
      };

      NIX_STORED_MIN_FREE_SPACE = mkOption {
        type = size;
        default = 0;
        example = "10G";
        description = "Uploads are refused when less than this would stay free on the disk.";
      };

      NIX_STORED_MAX_SIZE = mkOption {
        type = types.nullOr size;
        default = null;
        example = "200G";
        description = "Above this, what has been unused the longest goes, down to 90 % of it. Closures stay whole.";
      };

      NIX_STORED_MAX_AGE = mkOption {
        type = types.nullOr duration;
        default = null;
        example = "90d";
        description = ''
          What has not been used for this long goes. Clients remember for 30 days what the cache
          has, so a shorter time can make them miss what they count on.
        '';
      };

      NIX_STORED_UPSTREAMS = mkOption {
        type = types.listOf types.str;
        default = [ ];
        apply = lib.concatStringsSep " ";
        example = [ "https://cache.nixos.org" ];
        description = ''
          Other caches, in the order of trust: what is not here is asked of them, and kept. Options
          are parameters of the URL: `proxy`, `trusted-public-keys`, `timeout`, `store`.
        '';
      };

      NIX_STORED_UPSTREAM_NETRC = mkOption {
        type = types.nullOr types.path;
        default = null;
        description = "A netrc file with the passwords for them.";
      };

      NIX_STORED_UPSTREAM_ABSENT_TTL = mkOption {
        type = duration;
        default = "60s";
        description = "For how long it is remembered that none of them has a path.";
      };

      NIX_STORED_UPSTREAM_PRESENT_TTL = mkOption {
        type = duration;
        default = "1h";
        description = "For how long it is remembered that one of them has a path.";
      };

      NIX_STORED_GC_INTERVAL = mkOption {
        type = duration;
        default = "1h";
        description = "How often the daemon looks whether something has to go.";
      };

      NIX_STORED_TLS_CERT = mkOption {
        type = types.nullOr types.str;
        default = null;
        description = "A PEM file with the certificate for HTTPS.";
      };

      NIX_STORED_TLS_KEY = mkOption {
        type = types.nullOr types.str;
        default = null;
        description = "A PEM file with the key of the certificate.";
      };

      NIX_STORED_TLS_CLIENT_CA = mkOption {
        type = types.nullOr types.str;
        default = null;
        description = "A PEM file: who holds a certificate by this authority is the write user.";
      };
    };
  };
in
{
  options.services.nix-stored = {
    enable = lib.mkEnableOption "nix-stored, an HTTP binary cache for Nix";

    package = lib.mkPackageOption pkgs "nix-stored" { };

    openFirewall = mkOption {
      type = types.bool;
      default = false;
      description = "Whether to open the port of `NIX_STORED_LISTEN_INTERFACE` in the firewall.";
    };

    readPasswordFile = passwordFile "read";
    writePasswordFile = passwordFile "write";

    settings = mkOption {
      type = types.submodule settings;
      default = { };
      example = {
        NIX_STORED_LISTEN_INTERFACE = "[::]:8100";
        NIX_STORED_USER_WRITE = "builder";
      };
      description = ''
        The environment of the daemon, name by name. `null` leaves a variable unset, a list is
        joined with spaces.
      '';
    };
  };

  config = lib.mkIf cfg.enable {
    assertions =
      lib.concatMap (
        { variable, option }:
        [
          {
            assertion = (cfg.settings.${variable} != "") == (cfg.${option} != null);
            message = "services.nix-stored: settings.${variable} and ${option} need each other; set both, or none.";
          }
          {
            assertion = lib.all (suffix: cfg.settings.${variable + suffix} or null == null) [
              "_PASS"
              "_PASSFILE"
            ];
            message = "services.nix-stored: the Nix store is no place for settings.${variable}_PASS; put the password, or the name of its file, into ${option}.";
          }
        ]
      ) (lib.attrValues access)
      ++ [
        {
          assertion = cfg.openFirewall -> port != null;
          message = "services.nix-stored: openFirewall needs an address with a port, such as [::]:8100; settings.NIX_STORED_LISTEN_INTERFACE is ${listen}.";
        }
      ];

    warnings = lib.optional (
      cfg.openFirewall && isLoopback
    ) "services.nix-stored: openFirewall has no use while the daemon only listens on ${listen}.";

    networking.firewall.allowedTCPPorts = lib.optional (cfg.openFirewall && port != null) port;

    # Where others have to know the user, it exists; systemd then takes it for the dynamic one.
    users = lib.mkIf (isForeignDirectory || isSocket) {
      users.nix-stored = {
        isSystemUser = true;
        group = "nix-stored";
      };
      groups.nix-stored = { };
    };

    systemd.tmpfiles.settings.nix-stored = lib.mkIf isForeignDirectory {
      ${path}.d = {
        user = "nix-stored";
        group = "nix-stored";
        mode = "0700";
      };
    };

    systemd.services.nix-stored = {
      description = "nix-stored, an HTTP binary cache for Nix";
      wantedBy = [ "multi-user.target" ];
      wants = [ "network-online.target" ];
      after = [ "network-online.target" ];

      unitConfig.RequiresMountsFor = lib.optional isForeignDirectory path;

      environment =
        lib.mapAttrs (_: render) cfg.settings
        // lib.mapAttrs' (name: { variable, ... }: {
          name = "${variable}_PASSFILE";
          value = "%d/${name}-pass";
        }) credentials;

      serviceConfig = {
        ExecStart = lib.getExe cfg.package;
        LoadCredential = lib.mapAttrsToList (
          name: { option, ... }: "${name}-pass:${toString cfg.${option}}"
        ) credentials;

        DynamicUser = true;
        User = "nix-stored";
        StateDirectory = if inStateDirectory then lib.removePrefix "/var/lib/" path else "nixStored";
        StateDirectoryMode = "0700";
        RuntimeDirectory = "nix-stored";
        ReadWritePaths = lib.optional isForeignDirectory path;
        UMask = if isSocket then "0007" else "0077";

        Restart = "on-failure";
        RestartSec = 5;
        # A configuration error is still there the next time.
        RestartPreventExitStatus = 64;
        # Transfers get 30 s to end.
        TimeoutStopSec = 45;
        LimitNOFILE = 65536;

        AmbientCapabilities = lib.optional isPrivilegedPort "CAP_NET_BIND_SERVICE";
        CapabilityBoundingSet = if isPrivilegedPort then "CAP_NET_BIND_SERVICE" else "";
        DevicePolicy = "closed";
        KeyringMode = "private";
        LockPersonality = true;
        MemoryDenyWriteExecute = true;
        NoNewPrivileges = true;
        PrivateDevices = true;
        PrivateMounts = true;
        PrivateTmp = true;
        # In a user namespace, a capability says nothing about the host's ports.
        PrivateUsers = !isPrivilegedPort;
        ProcSubset = "pid";
        ProtectClock = true;
        ProtectControlGroups = true;
        # ReadWritePaths does not reach into what is inaccessible.
        ProtectHome = if lib.hasPrefix "/home/" path then "read-only" else true;
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
          "~@resources"
          # Collection and verification give way to requests.
          "sched_setscheduler"
          "setpriority"
        ];
      };
    };
  };
}
