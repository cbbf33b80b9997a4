# A simulation publishes, a reader on Linux verifies each snapshot: over huge
# pages and over small ones, with both sizes of chunks.
snapshots_of() { # title, options of snap-mini...
    title=$1
    shift
    begin "snap-mini publishes: $title"
    simulate t snap/flux tiny "$@"
    ended $sim
    code=$?
    cat /tmp/sim.t
    equal "snap-mini publishes: $title" "exit code 0" "exit code $code"
    begin "the reader verifies: $title"
    ended $reader
    code=$?
    cat /tmp/read.t
    # A reader that is held up costs a snapshot, which the program counts.
    set -- $(sed -n 's/^ *published \([0-9]*\) *dropped \([0-9]*\).*/\1 \2/p' /tmp/sim.t)
    equal "all steps of $title are accounted for" 5 $(($1 + $2))
    equal "the reader verifies: $title" "$1 verified, 0 torn, exit code 0" "$(verified t), exit code $code"
}

create t --cores 1 --mem 64M --backing huge --export /data=/data
fact t backing_page_bytes 2097152
snapshots_of "2 MiB chunks on huge pages"
snapshots_of "4 KiB chunks on huge pages" --chunk 4K
step "faults, publishes and system calls by the thousand" 0 \
    ./enclavectl run t -- ./xasm-counts --small
./enclavectl logs t
step "destroy t" 0 ./enclavectl destroy t

create t --cores 1 --mem 32M --backing small --export /data=/data
fact t backing_page_bytes 4096
snapshots_of "2 MiB chunks on small pages"
snapshots_of "4 KiB chunks on small pages" --chunk 4K
step "destroy t" 0 ./enclavectl destroy t
