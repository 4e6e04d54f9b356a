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
complete -c nix-stored -n "__fish_nix_stored_needs_command" -f -a "serve" -d 'Serves the cache until it is told to stop; what is done without a command'
complete -c nix-stored -n "__fish_nix_stored_needs_command" -f -a "gc" -d 'Removes what the limits say, or shows what that would be'
complete -c nix-stored -n "__fish_nix_stored_needs_command" -f -a "stats" -d 'Says what is in the cache'
complete -c nix-stored -n "__fish_nix_stored_needs_command" -f -a "verify" -d 'Checks that everything in the cache is what it claims to be'
complete -c nix-stored -n "__fish_nix_stored_needs_command" -f -a "delete" -d 'Removes store paths now'
complete -c nix-stored -n "__fish_nix_stored_needs_command" -f -a "pin" -d 'Keeps store paths, with everything that they need, under a name'
complete -c nix-stored -n "__fish_nix_stored_needs_command" -f -a "unpin" -d 'Takes a pin away'
complete -c nix-stored -n "__fish_nix_stored_needs_command" -f -a "pins" -d 'Lists the pins, and what each of them keeps'
complete -c nix-stored -n "__fish_nix_stored_needs_command" -f -a "health" -d 'Asks the daemon whether it can do what it is there for'
complete -c nix-stored -n "__fish_nix_stored_needs_command" -f -a "migrate" -d 'Copies a cache between directories and buckets'
complete -c nix-stored -n "__fish_nix_stored_needs_command" -f -a "check-config" -d 'Prints the configuration as it is understood, without passwords'
complete -c nix-stored -n "__fish_nix_stored_needs_command" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c nix-stored -n "__fish_nix_stored_using_subcommand serve" -s h -l help -d 'Print help'
complete -c nix-stored -n "__fish_nix_stored_using_subcommand gc" -l max-size -d 'Above so many bytes the longest unused goes, like 200G; without it, NIX_STORED_MAX_SIZE' -r
complete -c nix-stored -n "__fish_nix_stored_using_subcommand gc" -l max-age -d 'What has not been used for so long goes, like 90d; without it, NIX_STORED_MAX_AGE' -r
complete -c nix-stored -n "__fish_nix_stored_using_subcommand gc" -l explain -d 'Says why a path would go or stay, and removes nothing' -r
complete -c nix-stored -n "__fish_nix_stored_using_subcommand gc" -l dry-run -d 'Shows what would go and why, and removes nothing'
complete -c nix-stored -n "__fish_nix_stored_using_subcommand gc" -l break-lock -d 'Takes the right to collect from whoever has it, after saying who that is: in a bucket it outlives a collection that was killed, by five minutes'
complete -c nix-stored -n "__fish_nix_stored_using_subcommand gc" -l json -d 'Prints one JSON document: sizes in bytes, times as in RFC 3339'
complete -c nix-stored -n "__fish_nix_stored_using_subcommand gc" -s h -l help -d 'Print help'
complete -c nix-stored -n "__fish_nix_stored_using_subcommand stats" -l json -d 'Prints one JSON document: sizes in bytes, times as in RFC 3339'
complete -c nix-stored -n "__fish_nix_stored_using_subcommand stats" -s h -l help -d 'Print help'
complete -c nix-stored -n "__fish_nix_stored_using_subcommand verify" -l repair -d 'Moves what is false to .nix-stored/quarantine/, so that Nix uploads it again'
complete -c nix-stored -n "__fish_nix_stored_using_subcommand verify" -l deep -d 'Unpacks every NAR, and compares NarHash, NarSize and Compression too'
complete -c nix-stored -n "__fish_nix_stored_using_subcommand verify" -l json -d 'Prints one JSON document: sizes in bytes, times as in RFC 3339'
complete -c nix-stored -n "__fish_nix_stored_using_subcommand verify" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c nix-stored -n "__fish_nix_stored_using_subcommand delete" -l with-referrers -d 'Removes what needs them too'
complete -c nix-stored -n "__fish_nix_stored_using_subcommand delete" -l dry-run -d 'Shows what would go, and removes nothing'
complete -c nix-stored -n "__fish_nix_stored_using_subcommand delete" -l json -d 'Prints one JSON document: sizes in bytes, times as in RFC 3339'
complete -c nix-stored -n "__fish_nix_stored_using_subcommand delete" -s h -l help -d 'Print help'
complete -c nix-stored -n "__fish_nix_stored_using_subcommand pin" -l json -d 'Prints one JSON document: sizes in bytes, times as in RFC 3339'
complete -c nix-stored -n "__fish_nix_stored_using_subcommand pin" -s h -l help -d 'Print help'
complete -c nix-stored -n "__fish_nix_stored_using_subcommand unpin" -l json -d 'Prints one JSON document: sizes in bytes, times as in RFC 3339'
complete -c nix-stored -n "__fish_nix_stored_using_subcommand unpin" -s h -l help -d 'Print help'
complete -c nix-stored -n "__fish_nix_stored_using_subcommand pins" -l json -d 'Prints one JSON document: sizes in bytes, times as in RFC 3339'
complete -c nix-stored -n "__fish_nix_stored_using_subcommand pins" -s h -l help -d 'Print help'
complete -c nix-stored -n "__fish_nix_stored_using_subcommand health" -s h -l help -d 'Print help'
complete -c nix-stored -n "__fish_nix_stored_using_subcommand migrate" -l jobs -d 'How many objects are copied at a time' -r
complete -c nix-stored -n "__fish_nix_stored_using_subcommand migrate" -l json -d 'Prints one JSON document: sizes in bytes, times as in RFC 3339'
complete -c nix-stored -n "__fish_nix_stored_using_subcommand migrate" -s h -l help -d 'Print help'
complete -c nix-stored -n "__fish_nix_stored_using_subcommand check-config" -l json -d 'Prints one JSON document: sizes in bytes, times as in RFC 3339'
complete -c nix-stored -n "__fish_nix_stored_using_subcommand check-config" -s h -l help -d 'Print help'
complete -c nix-stored -n "__fish_nix_stored_using_subcommand help; and not __fish_seen_subcommand_from serve gc stats verify delete pin unpin pins health migrate check-config help" -f -a "serve" -d 'Serves the cache until it is told to stop; what is done without a command'
complete -c nix-stored -n "__fish_nix_stored_using_subcommand help; and not __fish_seen_subcommand_from serve gc stats verify delete pin unpin pins health migrate check-config help" -f -a "gc" -d 'Removes what the limits say, or shows what that would be'
complete -c nix-stored -n "__fish_nix_stored_using_subcommand help; and not __fish_seen_subcommand_from serve gc stats verify delete pin unpin pins health migrate check-config help" -f -a "stats" -d 'Says what is in the cache'
complete -c nix-stored -n "__fish_nix_stored_using_subcommand help; and not __fish_seen_subcommand_from serve gc stats verify delete pin unpin pins health migrate check-config help" -f -a "verify" -d 'Checks that everything in the cache is what it claims to be'
complete -c nix-stored -n "__fish_nix_stored_using_subcommand help; and not __fish_seen_subcommand_from serve gc stats verify delete pin unpin pins health migrate check-config help" -f -a "delete" -d 'Removes store paths now'
complete -c nix-stored -n "__fish_nix_stored_using_subcommand help; and not __fish_seen_subcommand_from serve gc stats verify delete pin unpin pins health migrate check-config help" -f -a "pin" -d 'Keeps store paths, with everything that they need, under a name'
complete -c nix-stored -n "__fish_nix_stored_using_subcommand help; and not __fish_seen_subcommand_from serve gc stats verify delete pin unpin pins health migrate check-config help" -f -a "unpin" -d 'Takes a pin away'
complete -c nix-stored -n "__fish_nix_stored_using_subcommand help; and not __fish_seen_subcommand_from serve gc stats verify delete pin unpin pins health migrate check-config help" -f -a "pins" -d 'Lists the pins, and what each of them keeps'
complete -c nix-stored -n "__fish_nix_stored_using_subcommand help; and not __fish_seen_subcommand_from serve gc stats verify delete pin unpin pins health migrate check-config help" -f -a "health" -d 'Asks the daemon whether it can do what it is there for'
complete -c nix-stored -n "__fish_nix_stored_using_subcommand help; and not __fish_seen_subcommand_from serve gc stats verify delete pin unpin pins health migrate check-config help" -f -a "migrate" -d 'Copies a cache between directories and buckets'
complete -c nix-stored -n "__fish_nix_stored_using_subcommand help; and not __fish_seen_subcommand_from serve gc stats verify delete pin unpin pins health migrate check-config help" -f -a "check-config" -d 'Prints the configuration as it is understood, without passwords'
complete -c nix-stored -n "__fish_nix_stored_using_subcommand help; and not __fish_seen_subcommand_from serve gc stats verify delete pin unpin pins health migrate check-config help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
