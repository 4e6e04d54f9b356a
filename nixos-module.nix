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

  isBucket = lib.hasPrefix "s3://" path;

  # systemd creates and owns directories below /var/lib.
  # Any other directory needs an owner that exists before the service starts.
  inStateDirectory = lib.hasPrefix "/var/lib/" path;
  isForeignDirectory = lib.hasPrefix "/" path && !inStateDirectory;

  # A reverse proxy connects to a socket as a member of the group.
  isSocket = lib.hasPrefix "unix:" listen;
  socketParts = builtins.match "unix:([^?]*)(.mode=([0-7]+))?" listen;
  socketMode = if socketParts == null then null else lib.elemAt socketParts 2;

  # The slash excludes socket paths, which may contain a colon.
  portMatch = builtins.match "[^/]*:([0-9]+)" listen;
  port = if portMatch == null then null else lib.toInt (builtins.head portMatch);
  isLoopback = builtins.match "(127\\.[0-9.]+|localhost|\\[::1]):[0-9]+" listen != null;
  # systemd does not resolve host names.
  isAddress = builtins.match "([0-9.]+|\\[[0-9a-fA-F:.]+]):[0-9]+" listen != null;

  isActivated = cfg.socketActivation.enable;
  bindsPrivilegedPort = port != null && port < 1024 && !isActivated;

  # Credentials that systemd passes to the service, by credential name.
  files = {
    read-pass = {
      variable = "NIX_STORED_USER_READ_PASSFILE";
      option = "readPasswordFile";
    };
    write-pass = {
      variable = "NIX_STORED_USER_WRITE_PASSFILE";
      option = "writePasswordFile";
    };
    upstream-netrc = {
      variable = "NIX_STORED_UPSTREAM_NETRC";
      option = "upstreamNetrcFile";
    };
    tls-cert = {
      variable = "NIX_STORED_TLS_CERT";
      option = "tlsCertFile";
    };
    tls-key = {
      variable = "NIX_STORED_TLS_KEY";
      option = "tlsKeyFile";
    };
    tls-client-ca = {
      variable = "NIX_STORED_TLS_CLIENT_CA";
      option = "tlsClientCaFile";
    };
  };
  credentials = lib.filterAttrs (_: { option, ... }: cfg.${option} != null) files;

  # The value of a variable as text. systemd would expand a percent sign, which S3 URLs contain.
  render =
    value:
    # An empty list leaves the variable unset: the daemon rejects an empty list of keys.
    if value == null || value == [ ] then
      null
    else if lib.isBool value then
      (if value then "1" else "0")
    else
      lib.replaceStrings [ "%" ] [ "%%" ] (toString value);

  fileOption =
    type: example: description:
    mkOption {
      type = types.nullOr type;
      default = null;
      inherit example;
      description = ''
        ${description} It may be readable only by root: systemd passes it to the service, and reads
        it again when the service restarts.
      '';
    };

  secretFile = fileOption (
    types.pathWith {
      absolute = true;
      inStore = false;
    }
  );

  passwordFile =
    who:
    secretFile "/run/secrets/nix-stored-${who}" ''
      File with the password of the ${who} user. One trailing newline is ignored.
    '';

  # The sandbox of both services.
  sandbox = {
    DynamicUser = true;
    User = "nix-stored";
    StateDirectory =
      if isBucket then
        [ ]
      else if inStateDirectory then
        lib.removePrefix "/var/lib/" path
      else
        "nixStored";
    StateDirectoryMode = "0700";
    ReadWritePaths = lib.optional isForeignDirectory path;

    CapabilityBoundingSet = "";
    DevicePolicy = "closed";
    KeyringMode = "private";
    LockPersonality = true;
    MemoryDenyWriteExecute = true;
    NoNewPrivileges = true;
    PrivateDevices = true;
    PrivateMounts = true;
    PrivateTmp = true;
    PrivateUsers = true;
    ProcSubset = "pid";
    ProtectClock = true;
    ProtectControlGroups = true;
    # ReadWritePaths has no effect below an inaccessible directory.
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
      # Collection and verification lower their priority.
      "sched_setscheduler"
      "setpriority"
    ];
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
          Directory of the cache, or a bucket: an `s3://` URL in Nix's syntax, with credentials in
          {option}`environmentFile`. A directory outside {file}`/var/lib` is created with the owner
          `nix-stored`.
        '';
      };

      NIX_STORED_LISTEN_INTERFACE = mkOption {
        type = types.str;
        default = "127.0.0.1:8100";
        example = "[::]:8100";
        description = ''
          Address to listen on: `host:port`, `[v6]:port`, `unix:/path` or `unix:/path?mode=0660`. Put a
          Unix socket into {file}`/run/nix-stored`; its clients, such as a reverse proxy, must be in the
          group `nix-stored`, unless the mode allows others.
        '';
      };

      NIX_STORED_USER_READ = mkOption {
        type = types.str;
        default = "";
        description = "User that may read, with the password in {option}`readPasswordFile`. Empty: anyone may read.";
      };

      NIX_STORED_USER_WRITE = mkOption {
        type = types.str;
        default = "";
        description = "User that may upload and read, with the password in {option}`writePasswordFile`.";
      };

      NIX_STORED_ANONYMOUS_WRITE = mkOption {
        type = types.nullOr types.bool;
        default = null;
        description = ''
          Uploads without credentials, if no write user is set: `true` allows them from anywhere,
          `false` refuses them. Unset: allowed only from this machine, not through a proxy, and only if no
          users are configured.
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
        description = "Minimum level of log messages.";
      };

      NIX_STORED_LOG_FORMAT = mkOption {
        type = types.enum [
          "text"
          "json"
        ];
        default = "text";
        description = "Format of the log.";
      };

      NIX_STORED_STORE_DIR = mkOption {
        type = types.strMatching "/.+";
        default = "/nix/store";
        description = "Store directory of all paths in the cache.";
      };

      NIX_STORED_PRIORITY = mkOption {
        type = types.ints.unsigned;
        default = 30;
        description = "Priority in `nix-cache-info`; clients query caches with lower numbers first.";
      };

      NIX_STORED_WANT_MASS_QUERY = mkOption {
        type = types.bool;
        default = true;
        description = "Whether clients may query many paths at once.";
      };

      NIX_STORED_TRUSTED_PUBLIC_KEYS = mkOption {
        type = types.listOf types.str;
        default = [ ];
        example = [ "cache.example.org-1:wAeZxbkuz3z4P622XGrk571eKC7b9jkxwaANwuDRIwY=" ];
        description = "Public keys; if not empty, every uploaded narinfo needs a valid signature by one of them.";
      };

      NIX_STORED_VERIFY = mkOption {
        type = types.enum [
          "nar"
          "file"
        ];
        default = "nar";
        description = "Verification of uploads: `nar` unpacks every NAR, `file` checks only hash and size of the file.";
      };

      NIX_STORED_REQUIRE_REFERENCES = mkOption {
        type = types.bool;
        default = false;
        description = "Whether to refuse a path unless all its references are in the cache.";
      };

      NIX_STORED_MAX_UPLOAD_SIZE = mkOption {
        type = types.nullOr size;
        default = null;
        example = "8G";
        description = "Maximum size of one upload, in bytes or with a unit `K`, `M`, `G` or `T`.";
      };

      NIX_STORED_MIN_FREE_SPACE = mkOption {
        type = size;
        default = 0;
        example = "10G";
        description = "Free disk space that uploads must leave.";
      };

      NIX_STORED_MAX_SIZE = mkOption {
        type = types.nullOr size;
        default = null;
        example = "200G";
        description = "Maximum size of the cache; above it, least recently used paths are removed until the cache is at 90 %.";
      };

      NIX_STORED_MAX_AGE = mkOption {
        type = types.nullOr duration;
        default = null;
        example = "90d";
        description = ''
          Maximum time without use; paths unused for longer are removed. Nix clients remember positive
          lookups for 30 days: with a smaller value, clients may rely on removed paths.
        '';
      };

      NIX_STORED_UPSTREAMS = mkOption {
        type = types.listOf types.str;
        default = [ ];
        apply = lib.concatStringsSep " ";
        example = [ "https://cache.nixos.org" ];
        description = ''
          URLs of upstream caches; objects that are missing here are requested from them in this order,
          and stored. Options are URL parameters: `proxy`, `trusted-public-keys`, `timeout`, `store`.
          Passwords belong in {option}`upstreamNetrcFile`.
        '';
      };

      NIX_STORED_UPSTREAM_ABSENT_TTL = mkOption {
        type = duration;
        default = "60s";
        description = "Time for which a path that no upstream has is remembered as absent.";
      };

      NIX_STORED_UPSTREAM_PRESENT_TTL = mkOption {
        type = duration;
        default = "1h";
        description = "Time for which a narinfo from an upstream is remembered.";
      };

      NIX_STORED_GC_INTERVAL = mkOption {
        type = duration;
        default = "1h";
        description = "Interval between garbage collections.";
      };

      NIX_STORED_S3_REDIRECT = mkOption {
        type = types.nullOr types.bool;
        default = null;
        description = ''
          Whether to redirect clients to the bucket for NARs, with presigned URLs. Unset: no.
        '';
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

    upstreamNetrcFile = secretFile "/run/secrets/nix-stored-netrc" ''
      netrc file with the passwords for `NIX_STORED_UPSTREAMS`.
    '';

    tlsCertFile = fileOption types.path "/var/lib/acme/cache.example.org/fullchain.pem" ''
      PEM file with the certificate chain; with {option}`tlsKeyFile`, the daemon serves HTTPS.
    '';
    tlsKeyFile = secretFile "/var/lib/acme/cache.example.org/key.pem" ''
      PEM file with the key of {option}`tlsCertFile`.
    '';
    tlsClientCaFile = fileOption types.path "/run/secrets/nix-stored-client-ca" ''
      PEM file with a CA; clients with a certificate signed by this CA may read and upload.
    '';

    environmentFile = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "/run/secrets/nix-stored-s3";
      description = ''
        File with more variables, one `NAME=value` per line, such as `AWS_ACCESS_KEY_ID` and
        `AWS_SECRET_ACCESS_KEY` of a bucket. It may be readable only by root.
      '';
    };

    socketActivation.enable = lib.mkEnableOption ''
      socket activation: systemd keeps the socket open, so a restart of the daemon refuses no connection
    '';

    gc = {
      enable = lib.mkEnableOption ''
        garbage collections at set times, in addition to those of the daemon every
        `NIX_STORED_GC_INTERVAL` if `settings` contain a limit
      '';
      dates = mkOption {
        type = types.str;
        default = "03:15";
        example = "Sun 03:15";
        description = "Time of the collections, in the syntax of {manpage}`systemd.time(7)`.";
      };
      maxSize = mkOption {
        type = types.nullOr size;
        default = null;
        example = "200G";
        description = "Maximum size of the cache in these collections; by default `NIX_STORED_MAX_SIZE`.";
      };
      maxAge = mkOption {
        type = types.nullOr duration;
        default = null;
        example = "90d";
        description = "Maximum time without use in these collections; by default `NIX_STORED_MAX_AGE`.";
      };
    };

    settings = mkOption {
      type = types.submodule settings;
      default = { };
      example = {
        NIX_STORED_LISTEN_INTERFACE = "[::]:8100";
        NIX_STORED_USER_WRITE = "builder";
      };
      description = ''
        Environment variables of the daemon. `null` leaves a variable unset; lists are joined with
        spaces.
      '';
    };
  };

  config = lib.mkIf cfg.enable {
    assertions =
      lib.concatMap
        (
          { variable, option }:
          [
            {
              assertion = (cfg.settings.${variable} != "") == (cfg.${option} != null);
              message = "services.nix-stored: set settings.${variable} and ${option} together, or neither.";
            }
            {
              assertion = cfg.settings."${variable}_PASS" or null == null;
              message = "services.nix-stored: settings.${variable}_PASS would be readable in the Nix store; put the password into a file and set ${option}.";
            }
          ]
        )
        [
          {
            variable = "NIX_STORED_USER_READ";
            option = "readPasswordFile";
          }
          {
            variable = "NIX_STORED_USER_WRITE";
            option = "writePasswordFile";
          }
        ]
      ++ lib.mapAttrsToList (
        _:
        { variable, option }:
        {
          assertion = cfg.settings.${variable} or null == null;
          message = "services.nix-stored: the service cannot read the file in settings.${variable}; set ${option} instead.";
        }
      ) files
      ++ [
        {
          assertion = (cfg.tlsCertFile != null) == (cfg.tlsKeyFile != null);
          message = "services.nix-stored: set tlsCertFile and tlsKeyFile together, or neither.";
        }
        {
          assertion = cfg.tlsClientCaFile != null -> cfg.tlsCertFile != null;
          message = "services.nix-stored: tlsClientCaFile needs tlsCertFile and tlsKeyFile.";
        }
        {
          assertion = isActivated -> socketParts != null || isAddress;
          message = "services.nix-stored: socketActivation needs an address such as [::]:8100, not a host name; settings.NIX_STORED_LISTEN_INTERFACE is ${listen}.";
        }
        {
          assertion = cfg.openFirewall -> port != null;
          message = "services.nix-stored: openFirewall needs an address with a port, such as [::]:8100; settings.NIX_STORED_LISTEN_INTERFACE is ${listen}.";
        }
      ];

    warnings = lib.optional (
      cfg.openFirewall && isLoopback
    ) "services.nix-stored: openFirewall has no effect, because the daemon listens only on ${listen}.";

    networking.firewall.allowedTCPPorts = lib.optional (cfg.openFirewall && port != null) port;

    # A static user, if a proxy or a directory needs it; systemd uses it in place of a dynamic user.
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

    systemd.sockets.nix-stored = lib.mkIf isActivated {
      description = "Socket of the HTTP binary cache for Nix";
      wantedBy = [ "sockets.target" ];
      socketConfig = {
        ListenStream = if isSocket then lib.head socketParts else listen;
        Backlog = 4096;
      }
      // (
        if isSocket then
          {
            SocketGroup = "nix-stored";
            SocketMode = if socketMode == null then "0660" else socketMode;
          }
        else
          { NoDelay = true; }
      );
    };

    systemd.services.nix-stored = {
      description = "nix-stored, an HTTP binary cache for Nix";
      wantedBy = [ "multi-user.target" ];
      wants = [ "network-online.target" ];
      requires = lib.optional isActivated "nix-stored.socket";
      after = [ "network-online.target" ] ++ lib.optional isActivated "nix-stored.socket";
      # A new configuration restarts the service, but keeps the socket open.
      stopIfChanged = !isActivated;

      unitConfig.RequiresMountsFor = lib.optional isForeignDirectory path;

      environment =
        lib.mapAttrs (_: render) cfg.settings
        // lib.mapAttrs' (name: { variable, ... }: {
          name = variable;
          value = "%d/${name}";
        }) credentials;

      serviceConfig = sandbox // {
        Type = "notify";
        ExecStart = lib.getExe cfg.package;
        ExecReload = "${pkgs.coreutils}/bin/kill -HUP $MAINPID";
        EnvironmentFile = lib.optional (cfg.environmentFile != null) cfg.environmentFile;
        LoadCredential = lib.mapAttrsToList (
          name: { option, ... }: "${name}:${toString cfg.${option}}"
        ) credentials;

        RuntimeDirectory = "nix-stored";
        UMask = if isSocket then "0007" else "0077";

        Restart = "on-failure";
        RestartSec = 5;
        # A restart does not fix a configuration error.
        RestartPreventExitStatus = 64;
        # Transfers have 30 s to finish.
        TimeoutStopSec = 45;
        WatchdogSec = 60;
        LimitNOFILE = 65536;

        AmbientCapabilities = lib.optional bindsPrivilegedPort "CAP_NET_BIND_SERVICE";
        CapabilityBoundingSet = if bindsPrivilegedPort then "CAP_NET_BIND_SERVICE" else "";
        # In a user namespace, the capability would not apply to ports of the host.
        PrivateUsers = !bindsPrivilegedPort;
      };
    };

    systemd.services.nix-stored-gc = lib.mkIf cfg.gc.enable {
      description = "Garbage collection of the HTTP binary cache for Nix";
      startAt = cfg.gc.dates;
      unitConfig.RequiresMountsFor = lib.optional isForeignDirectory path;

      environment = lib.genAttrs [
        "NIX_STORED_PATH"
        "NIX_STORED_STORE_DIR"
        "NIX_STORED_MAX_SIZE"
        "NIX_STORED_MAX_AGE"
      ] (name: render cfg.settings.${name});

      serviceConfig = sandbox // {
        Type = "oneshot";
        ExecStart = lib.concatStringsSep " " (
          [ "${lib.getExe cfg.package} gc" ]
          ++ lib.optional (cfg.gc.maxSize != null) "--max-size ${toString cfg.gc.maxSize}"
          ++ lib.optional (cfg.gc.maxAge != null) "--max-age ${cfg.gc.maxAge}"
        );
        EnvironmentFile = lib.optional (cfg.environmentFile != null) cfg.environmentFile;
        # Status 2: the cache is above its limit, but nothing more can be removed. The unit did not fail.
        SuccessExitStatus = 2;
        UMask = "0077";
      };
    };
    systemd.timers.nix-stored-gc = lib.mkIf cfg.gc.enable { timerConfig.Persistent = true; };
  };
}
