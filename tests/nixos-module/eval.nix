# Evaluates nixos-module.nix without nixpkgs, for a test to read:
#
#   nix-instantiate --eval --strict --json tests/nixos-module/eval.nix
#
# `lib` below has as much of nixpkgs' lib as the module uses. Its types check values and fill in
# defaults, but merge nothing: each case is one definition of services.nix-stored.
let
  fail = message: builtins.throw "eval.nix: ${message}";

  lib = rec {
    inherit (builtins)
      all
      attrValues
      concatMap
      concatStringsSep
      isBool
      mapAttrs
      replaceStrings
      ;

    filterAttrs =
      keep: set:
      removeAttrs set (builtins.filter (name: !keep name set.${name}) (builtins.attrNames set));
    mapAttrs' = f: set: builtins.listToAttrs (mapAttrsToList f set);
    mapAttrsToList = f: set: map (name: f name set.${name}) (builtins.attrNames set);
    hasPrefix = prefix: text: builtins.substring 0 (builtins.stringLength prefix) text == prefix;
    removePrefix =
      prefix: text:
      if hasPrefix prefix text then builtins.substring (builtins.stringLength prefix) (-1) text else text;
    optional = condition: value: if condition then [ value ] else [ ];
    toInt = text: builtins.fromJSON text;
    getExe = package: "${package}/bin/${package.meta.mainProgram}";

    # A definition that does not apply is an empty one here.
    mkIf = condition: content: if condition then content else { };
    mkOption = option: option // { _type = "option"; };
    mkEnableOption =
      what:
      mkOption {
        type = types.bool;
        default = false;
        description = "Whether to enable ${what}.";
      };
    mkPackageOption =
      pkgs: name: { }:
      mkOption {
        type = types.package;
        default = pkgs.${name};
        description = "The package to use.";
      };

    types = rec {
      bool.check = builtins.isBool;
      int.check = builtins.isInt;
      ints.unsigned.check = value: int.check value && value >= 0;
      str.check = builtins.isString;
      package.check = value: value ? outPath;
      strMatching = pattern: {
        check = value: str.check value && builtins.match pattern value != null;
      };
      enum = values: { check = value: builtins.elem value values; };
      nullOr = type: { check = value: value == null || type.check value; };
      either = left: right: { check = value: left.check value || right.check value; };
      oneOf = alternatives: { check = value: builtins.any (type: type.check value) alternatives; };
      listOf = type: { check = value: builtins.isList value && builtins.all type.check value; };
      attrsOf = type: {
        check = value: builtins.isAttrs value && builtins.all type.check (builtins.attrValues value);
      };
      pathWith =
        { absolute, inStore }:
        {
          check =
            value:
            str.check value
            && hasPrefix "/" value == absolute
            && hasPrefix "${builtins.storeDir}/" value == inStore;
        };
      submodule = module: {
        inherit module;
        check = builtins.isAttrs;
      };
    };
  };

  pkgs.nix-stored = {
    outPath = "/nix-stored";
    meta.mainProgram = "nix-stored";
  };

  # The value of each option, given or default, and of the freeform rest.
  fill =
    at:
    {
      options,
      freeformType ? fail "${at} has no such option",
    }:
    given:
    let
      rest = removeAttrs given (builtins.attrNames options);
      value =
        name: option:
        let
          here = "${at}.${name}";
          chosen = given.${name} or option.default or (fail "${here} has no value");
        in
        if !option ? description then
          fail "${here} has no description"
        else if !option.type.check chosen then
          fail "${here} does not take ${builtins.toJSON chosen}"
        else if option.type ? module then
          fill here option.type.module chosen
        else
          chosen;
    in
    if rest != { } && !freeformType.check rest then
      fail "${at} does not take ${builtins.toJSON rest}"
    else
      rest // builtins.mapAttrs value options;

  # The module itself, its option declarations and the config it makes of `given`.
  evaluate =
    given:
    let
      module = import ../../nixos-module.nix {
        inherit lib pkgs;
        config.services.nix-stored = fill "services.nix-stored" {
          options = module.options.services.nix-stored;
        } given;
      };
    in
    module;

  environment = service: lib.filterAttrs (_: value: value != null) service.environment;

  # What systemd would read, as NixOS writes it.
  unit =
    service:
    let
      text = value: if builtins.isBool value then (if value then "true" else "false") else toString value;
      lines = lib.mapAttrsToList (
        name: value:
        map (one: "${name}=${text one}\n") (if builtins.isList value then value else [ value ])
      );
      section = name: content: "[${name}]\n${lib.concatStringsSep "" content}";
    in
    section "Unit" (
      [ "Description=${service.description}\n" ] ++ builtins.concatLists (lines service.unitConfig)
    )
    + section "Service" (
      lib.mapAttrsToList (
        name: value: "Environment=${builtins.toJSON "${name}=${value}"}\n"
      ) (environment service)
      ++ builtins.concatLists (lines service.serviceConfig)
    );

  report =
    given:
    let
      inherit (evaluate ({ enable = true; } // given)) config;
      service = config.systemd.services.nix-stored;
    in
    {
      environment = environment service;
      serviceConfig = service.serviceConfig;
      unit = unit service;
      loadCredential = service.serviceConfig.LoadCredential;
      failedAssertions = map (failed: failed.message) (
        builtins.filter (one: !one.assertion) config.assertions
      );
      warnings = config.warnings;
      firewallPorts = config.networking.firewall.allowedTCPPorts;
      users = builtins.attrNames (config.users.users or { });
      directories = builtins.attrNames config.systemd.tmpfiles.settings.nix-stored;
    };

  settingsOptions = (evaluate { }).options.services.nix-stored.settings.type.module.options;

  listenOn = interface: {
    openFirewall = true;
    settings.NIX_STORED_LISTEN_INTERFACE = interface;
  };
in
{
  # The text of each default; null where the variable is left unset.
  defaults =
    let
      inherit (evaluate { enable = true; }) config;
    in
    builtins.mapAttrs (name: _: config.systemd.services.nix-stored.environment.${name}) settingsOptions;

  disabled = (evaluate { }).config;

  # Whether the types refuse what the daemon would refuse.
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
    };

  cases = {
    defaults = report { };

    full = report {
      openFirewall = true;
      readPasswordFile = "/run/secrets/read";
      writePasswordFile = "/run/secrets/write";
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
      };
    };

    stateDirectory = report { settings.NIX_STORED_PATH = "/var/lib/caches/nix"; };
    foreignDirectory = report { settings.NIX_STORED_PATH = "/srv/cache"; };
    socket = report { settings.NIX_STORED_LISTEN_INTERFACE = "unix:/run/nix-stored/http"; };
    privilegedPort = report (listenOn "0.0.0.0:80");
    loopback = report (listenOn "127.0.0.1:8100");
  };
}
