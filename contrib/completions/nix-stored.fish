# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_nix_stored_global_optspecs
    string join \n h/help V/version
end

function __fish_nix_stored_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_nix_stored_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_nix_stored_using_subcommand
    set -l cmd (__fish_nix_stored_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c nix-stored -n "__fish_nix_stored_needs_command" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c nix-stored -n "__fish_nix_stored_needs_command" -s V -l version -d 'Print version'
complete -c nix-stored -n "__fish_nix_stored_needs_command" -f -a "serve" -d 'Run the server (default)'
complete -c nix-stored -n "__fish_nix_stored_needs_command" -f -a "gc" -d 'Collect garbage, or preview it'
complete -c nix-stored -n "__fish_nix_stored_needs_command" -f -a "stats" -d 'Print statistics of the cache'
complete -c nix-stored -n "__fish_nix_stored_needs_command" -f -a "verify" -d 'Check every object in the cache'
complete -c nix-stored -n "__fish_nix_stored_needs_command" -f -a "delete" -d 'Remove store paths immediately'
complete -c nix-stored -n "__fish_nix_stored_needs_command" -f -a "pin" -d 'Keep store paths with their closures under a name'
complete -c nix-stored -n "__fish_nix_stored_needs_command" -f -a "unpin" -d 'Remove a pin'
complete -c nix-stored -n "__fish_nix_stored_needs_command" -f -a "pins" -d 'List the pins with the paths that they keep'
complete -c nix-stored -n "__fish_nix_stored_needs_command" -f -a "health" -d 'Check whether the daemon is healthy'
complete -c nix-stored -n "__fish_nix_stored_needs_command" -f -a "migrate" -d 'Copy a cache between directories and buckets'
complete -c nix-stored -n "__fish_nix_stored_needs_command" -f -a "check-config" -d 'Print the effective configuration, without passwords'
complete -c nix-stored -n "__fish_nix_stored_needs_command" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c nix-stored -n "__fish_nix_stored_using_subcommand serve" -s h -l help -d 'Print help'
complete -c nix-stored -n "__fish_nix_stored_using_subcommand gc" -l max-size -d 'Maximum size of the cache, such as 200G, in place of NIX_STORED_MAX_SIZE' -r
complete -c nix-stored -n "__fish_nix_stored_using_subcommand gc" -l max-age -d 'Maximum time without use, such as 90d, in place of NIX_STORED_MAX_AGE' -r
complete -c nix-stored -n "__fish_nix_stored_using_subcommand gc" -l explain -d 'Print why a path would be kept or removed' -r
complete -c nix-stored -n "__fish_nix_stored_using_subcommand gc" -l dry-run -d 'Preview what would be removed and why'
complete -c nix-stored -n "__fish_nix_stored_using_subcommand gc" -l break-lock -d 'Take over the collection lock of a bucket, after printing its holder; the lock of a killed collection expires after five minutes'
complete -c nix-stored -n "__fish_nix_stored_using_subcommand gc" -l json -d 'Print one JSON document: sizes in bytes, times in RFC 3339 format'
complete -c nix-stored -n "__fish_nix_stored_using_subcommand gc" -s h -l help -d 'Print help'
complete -c nix-stored -n "__fish_nix_stored_using_subcommand stats" -l json -d 'Print one JSON document: sizes in bytes, times in RFC 3339 format'
complete -c nix-stored -n "__fish_nix_stored_using_subcommand stats" -s h -l help -d 'Print help'
complete -c nix-stored -n "__fish_nix_stored_using_subcommand verify" -l repair -d 'Quarantine damaged objects in .nix-stored/quarantine/, so that Nix uploads them again'
complete -c nix-stored -n "__fish_nix_stored_using_subcommand verify" -l deep -d 'Unpack every NAR, and compare NarHash, NarSize and Compression'
complete -c nix-stored -n "__fish_nix_stored_using_subcommand verify" -l json -d 'Print one JSON document: sizes in bytes, times in RFC 3339 format'
complete -c nix-stored -n "__fish_nix_stored_using_subcommand verify" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c nix-stored -n "__fish_nix_stored_using_subcommand delete" -l with-referrers -d 'Also remove the paths that depend on the given paths'
complete -c nix-stored -n "__fish_nix_stored_using_subcommand delete" -l dry-run -d 'Preview what would be removed'
complete -c nix-stored -n "__fish_nix_stored_using_subcommand delete" -l json -d 'Print one JSON document: sizes in bytes, times in RFC 3339 format'
complete -c nix-stored -n "__fish_nix_stored_using_subcommand delete" -s h -l help -d 'Print help'
complete -c nix-stored -n "__fish_nix_stored_using_subcommand pin" -l json -d 'Print one JSON document: sizes in bytes, times in RFC 3339 format'
complete -c nix-stored -n "__fish_nix_stored_using_subcommand pin" -s h -l help -d 'Print help'
complete -c nix-stored -n "__fish_nix_stored_using_subcommand unpin" -l json -d 'Print one JSON document: sizes in bytes, times in RFC 3339 format'
complete -c nix-stored -n "__fish_nix_stored_using_subcommand unpin" -s h -l help -d 'Print help'
complete -c nix-stored -n "__fish_nix_stored_using_subcommand pins" -l json -d 'Print one JSON document: sizes in bytes, times in RFC 3339 format'
complete -c nix-stored -n "__fish_nix_stored_using_subcommand pins" -s h -l help -d 'Print help'
complete -c nix-stored -n "__fish_nix_stored_using_subcommand health" -s h -l help -d 'Print help'
complete -c nix-stored -n "__fish_nix_stored_using_subcommand migrate" -l jobs -d 'Number of objects copied at a time' -r
complete -c nix-stored -n "__fish_nix_stored_using_subcommand migrate" -l json -d 'Print one JSON document: sizes in bytes, times in RFC 3339 format'
complete -c nix-stored -n "__fish_nix_stored_using_subcommand migrate" -s h -l help -d 'Print help'
complete -c nix-stored -n "__fish_nix_stored_using_subcommand check-config" -l json -d 'Print one JSON document: sizes in bytes, times in RFC 3339 format'
complete -c nix-stored -n "__fish_nix_stored_using_subcommand check-config" -s h -l help -d 'Print help'
complete -c nix-stored -n "__fish_nix_stored_using_subcommand help; and not __fish_seen_subcommand_from serve gc stats verify delete pin unpin pins health migrate check-config help" -f -a "serve" -d 'Run the server (default)'
complete -c nix-stored -n "__fish_nix_stored_using_subcommand help; and not __fish_seen_subcommand_from serve gc stats verify delete pin unpin pins health migrate check-config help" -f -a "gc" -d 'Collect garbage, or preview it'
complete -c nix-stored -n "__fish_nix_stored_using_subcommand help; and not __fish_seen_subcommand_from serve gc stats verify delete pin unpin pins health migrate check-config help" -f -a "stats" -d 'Print statistics of the cache'
complete -c nix-stored -n "__fish_nix_stored_using_subcommand help; and not __fish_seen_subcommand_from serve gc stats verify delete pin unpin pins health migrate check-config help" -f -a "verify" -d 'Check every object in the cache'
complete -c nix-stored -n "__fish_nix_stored_using_subcommand help; and not __fish_seen_subcommand_from serve gc stats verify delete pin unpin pins health migrate check-config help" -f -a "delete" -d 'Remove store paths immediately'
complete -c nix-stored -n "__fish_nix_stored_using_subcommand help; and not __fish_seen_subcommand_from serve gc stats verify delete pin unpin pins health migrate check-config help" -f -a "pin" -d 'Keep store paths with their closures under a name'
complete -c nix-stored -n "__fish_nix_stored_using_subcommand help; and not __fish_seen_subcommand_from serve gc stats verify delete pin unpin pins health migrate check-config help" -f -a "unpin" -d 'Remove a pin'
complete -c nix-stored -n "__fish_nix_stored_using_subcommand help; and not __fish_seen_subcommand_from serve gc stats verify delete pin unpin pins health migrate check-config help" -f -a "pins" -d 'List the pins with the paths that they keep'
complete -c nix-stored -n "__fish_nix_stored_using_subcommand help; and not __fish_seen_subcommand_from serve gc stats verify delete pin unpin pins health migrate check-config help" -f -a "health" -d 'Check whether the daemon is healthy'
complete -c nix-stored -n "__fish_nix_stored_using_subcommand help; and not __fish_seen_subcommand_from serve gc stats verify delete pin unpin pins health migrate check-config help" -f -a "migrate" -d 'Copy a cache between directories and buckets'
complete -c nix-stored -n "__fish_nix_stored_using_subcommand help; and not __fish_seen_subcommand_from serve gc stats verify delete pin unpin pins health migrate check-config help" -f -a "check-config" -d 'Print the effective configuration, without passwords'
complete -c nix-stored -n "__fish_nix_stored_using_subcommand help; and not __fish_seen_subcommand_from serve gc stats verify delete pin unpin pins health migrate check-config help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
