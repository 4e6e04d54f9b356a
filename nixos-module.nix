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

  # systemd makes and owns what is below /var/lib.
  # Any other directory needs an owner who exists before the service does.
  inStateDirectory = lib.hasPrefix "/var/lib/" path;
  isForeignDirectory = lib.hasPrefix "/" path && !inStateDirectory;

  # A reverse proxy enters a socket as a member of the group.
  isSocket = lib.hasPrefix "unix:" listen;
  socketParts = builtins.match "unix:([^?]*)(.mode=([0-7]+))?" listen;
  socketMode = if socketParts == null then null else lib.elemAt socketParts 2;

  # The slash keeps out socket paths, which may hold a colon.
  portMatch = builtins.match "[^/]*:([0-9]+)" listen;
  port = if portMatch == null then null else lib.toInt (builtins.head portMatch);
  isLoopback = builtins.match "(127\\.[0-9.]+|localhost|\\[::1]):[0-9]+" listen != null;
  # systemd looks up no names.
  isAddress = builtins.match "([0-9.]+|\\[[0-9a-fA-F:.]+]):[0-9]+" listen != null;

  isActivated = cfg.socketActivation.enable;
  bindsPrivilegedPort = port != null && port < 1024 && !isActivated;

  # What systemd hands to the service, by the name that it has there.
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

  # The text of a variable. To systemd a percent sign is a specifier, to an S3 URL it is not.
  render =
    value:
    # An empty list is no value: an empty variable would be a mistake to the daemon.
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
        ${description} Only root needs to be able to read it: systemd hands it to the service, and
        reads it again when that is restarted.
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
      File with the password of the ${who} user. One newline at its end is no part of the password.
    '';

  # What both services can do to the rest of the machine.
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
          Where the cache is kept: a directory, or an `s3://` URL in Nix's own form, with its
          credentials in {option}`environmentFile`. Outside {file}`/var/lib`, the directory is made
          for, and owned by, the user `nix-stored`.
        '';
      };

      NIX_STORED_LISTEN_INTERFACE = mkOption {
        type = types.str;
        default = "127.0.0.1:8100";
        example = "[::]:8100";
        description = ''
          `host:port`, `[v6]:port`, `unix:/path` or `unix:/path?mode=0660`. A socket belongs in
          {file}`/run/nix-stored`; who connects to it, such as a reverse proxy, has to be in the group
          `nix-stored`, unless the mode says otherwise.
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
          loopback address or a unix socket, and not through a proxy.
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
          are parameters of the URL: `proxy`, `trusted-public-keys`, `timeout`, `store`. Passwords
          for them are in {option}`upstreamNetrcFile`.
        '';
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

      NIX_STORED_S3_REDIRECT = mkOption {
        type = types.nullOr types.bool;
        default = null;
        description = ''
          Whether clients fetch NARs from the bucket itself, by presigned URLs. Unset: they do not.
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
      A netrc file with the passwords for `NIX_STORED_UPSTREAMS`.
    '';

    tlsCertFile = fileOption types.path "/var/lib/acme/cache.example.org/fullchain.pem" ''
      Certificate chain in PEM: the daemon speaks HTTPS, with {option}`tlsKeyFile`.
    '';
    tlsKeyFile = secretFile "/var/lib/acme/cache.example.org/key.pem" ''
      The key of {option}`tlsCertFile` in PEM.
    '';
    tlsClientCaFile = fileOption types.path "/run/secrets/nix-stored-client-ca" ''
      Certificate authorities in PEM: who has a certificate of theirs may upload.
    '';

    environmentFile = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "/run/secrets/nix-stored-s3";
      description = ''
        File with more variables, one `NAME=value` a line, which root reads: `AWS_ACCESS_KEY_ID` and
        `AWS_SECRET_ACCESS_KEY` of a bucket.
      '';
    };

    socketActivation.enable = lib.mkEnableOption ''
      a socket unit: systemd holds the socket, so a restart of the daemon refuses no connection
    '';

    gc = {
      enable = lib.mkEnableOption ''
        collections at set times, besides those that the daemon does by itself every
        `NIX_STORED_GC_INTERVAL` where `settings` have a limit
      '';
      dates = mkOption {
        type = types.str;
        default = "03:15";
        example = "Sun 03:15";
        description = "When, in the words of {manpage}`systemd.time(7)`.";
      };
      maxSize = mkOption {
        type = types.nullOr size;
        default = null;
        example = "200G";
        description = "The limit of these collections; without it, `NIX_STORED_MAX_SIZE`.";
      };
      maxAge = mkOption {
        type = types.nullOr duration;
        default = null;
        example = "90d";
        description = "The limit of these collections; without it, `NIX_STORED_MAX_AGE`.";
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
        The environment of the daemon, name by name. `null` leaves a variable unset, a list is
        joined with spaces.
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
              message = "services.nix-stored: settings.${variable} and ${option} need each other; set both, or none.";
            }
            {
              assertion = cfg.settings."${variable}_PASS" or null == null;
              message = "services.nix-stored: the Nix store is no place for settings.${variable}_PASS; put the name of a file with the password into ${option}.";
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
          message = "services.nix-stored: the service cannot read what settings.${variable} names; put the name of the file into ${option}.";
        }
      ) files
      ++ [
        {
          assertion = (cfg.tlsCertFile != null) == (cfg.tlsKeyFile != null);
          message = "services.nix-stored: tlsCertFile and tlsKeyFile need each other; set both, or none.";
        }
        {
          assertion = cfg.tlsClientCaFile != null -> cfg.tlsCertFile != null;
          message = "services.nix-stored: tlsClientCaFile needs tlsCertFile and tlsKeyFile.";
        }
        {
          assertion = isActivated -> socketParts != null || isAddress;
          message = "services.nix-stored: socketActivation needs an address such as [::]:8100, and no name; settings.NIX_STORED_LISTEN_INTERFACE is ${listen}.";
        }
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
      # A new configuration restarts it under its socket, which is not closed.
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
        # A configuration error is still there the next time.
        RestartPreventExitStatus = 64;
        # Transfers get 30 s to end.
        TimeoutStopSec = 45;
        WatchdogSec = 60;
        LimitNOFILE = 65536;

        AmbientCapabilities = lib.optional bindsPrivilegedPort "CAP_NET_BIND_SERVICE";
        CapabilityBoundingSet = if bindsPrivilegedPort then "CAP_NET_BIND_SERVICE" else "";
        # In a user namespace, a capability says nothing about the host's ports.
        PrivateUsers = !bindsPrivilegedPort;
      };
    };

    systemd.services.nix-stored-gc = lib.mkIf cfg.gc.enable {
      description = "Collection in the HTTP binary cache for Nix";
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
        # The limits are exceeded and nothing more can go: that is no failure of the unit.
        SuccessExitStatus = 2;
        UMask = "0077";
      };
    };
    systemd.timers.nix-stored-gc = lib.mkIf cfg.gc.enable { timerConfig.Persistent = true; };
  };
}
