# Evaluates the NixOS modules without nixpkgs.
#
# `lib` below has the functions of nixpkgs' lib that the modules use. Its types check values and
# apply defaults, but do not merge definitions: each case has one definition of one service.
let
  fail = message: builtins.throw "eval.nix: ${message}";

  lib = rec {
    inherit (builtins)
      all
      attrNames
      attrValues
      concatMap
      concatStringsSep
      elemAt
      head
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
    genAttrs = names: f: builtins.listToAttrs (map (name: { inherit name; value = f name; }) names);
    optional = condition: value: if condition then [ value ] else [ ];
    optionalAttrs = condition: value: if condition then value else { };
    optionalString = condition: value: if condition then value else "";
    toInt = text: builtins.fromJSON text;
    getExe = package: "${package}/bin/${package.meta.mainProgram}";

    # If the condition is false, the definition is empty.
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
      ints.positive.check = value: int.check value && value > 0;
      str.check = builtins.isString;
      lines.check = str.check;
      package.check = value: value ? outPath;
      path.check = value: builtins.isPath value || str.check value && hasPrefix "/" value;
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

  # Packages and scripts are represented by their paths.
  pkgs = {
    nix-stored = {
      outPath = "/nix-stored";
      meta.mainProgram = "nix-stored";
    };
    coreutils = "/coreutils";
    findutils = "/findutils";
    gnugrep = "/gnugrep";
    gnused = "/gnused";
    util-linux = "/util-linux";
    nix = "/nix";
    writeShellScript = name: text: builtins.seq (builtins.stringLength text) "/script/${name}";
  };

  # The value of each option, defined or default, and of freeform settings.
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
        if !option ? _type then
          fill here { options = option; } (given.${name} or { })
        else if !option ? description then
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

  # A module, its option declarations, and its config for these definitions of `service`.
  evaluate =
    file: service: given:
    let
      module = import file {
        inherit lib pkgs;
        config = {
          services.${service} = fill "services.${service}" {
            options = module.options.services.${service};
          } given;
          nix.package = pkgs.nix;
        };
      };
    in
    module;

  environment = service: lib.filterAttrs (_: value: value != null) service.environment;

  section =
    name: content:
    let
      text = value: if builtins.isBool value then (if value then "true" else "false") else toString value;
      lines =
        name: value:
        map (one: "${name}=${text one}\n") (if builtins.isList value then value else [ value ]);
    in
    "[${name}]\n${lib.concatStringsSep "" (builtins.concatLists (lib.mapAttrsToList lines content))}\n";

  # The text of the unit files of NixOS.
  units = config: {
    services = builtins.mapAttrs (
      _: service:
      section "Unit" (
        {
          Description = service.description;
        }
        // service.unitConfig or { }
      )
      + section "Service" (
        {
          Environment = lib.mapAttrsToList (name: value: builtins.toJSON "${name}=${value}") (
            environment service
          );
        }
        // service.serviceConfig
      )
    ) (lib.filterAttrs (_: service: service ? serviceConfig) config.systemd.services);
    sockets = builtins.mapAttrs (_: socket: section "Socket" socket.socketConfig) (
      lib.filterAttrs (_: socket: socket ? socketConfig) config.systemd.sockets or { }
    );
  };
in
{
  inherit
    evaluate
    environment
    lib
    pkgs
    units
    ;
}
