# Cores and memory come from the node asked for. Each is told three ways: by
# `inspect`, by the thread's status in procfs, and by the node's own count of
# huge pages or free memory.
#
# Two nodes: cores 0-1 and 2-3, each with LANE_HUGE huge pages.

node_file() {
    cat "/sys/devices/system/node/node$1/hugepages/hugepages-2048kB/$2_hugepages"
}

# Bytes of the enclave that `inspect` finds on a node: of RAM and arenas.
bytes_on() { # enclave, node
    ./enclavectl inspect "$1" --json | awk -v wanted="$2" '
        /"bytes":/ { bytes = $2 + 0 }
        /"node":/ { if ($2 + 0 == wanted) sum += bytes; bytes = 0 }
        END { printf "%.0f\n", sum }'
}

# Cores that the kernel lets the vCPU thread run on.
cores_of() { # enclave
    pid=$(./enclavectl inspect "$1" --json | sed -n 's/.*"pid": \([0-9]*\).*/\1/p' | head -1)
    for task in /proc/"$pid"/task/*; do
        case $(cat "$task/comm") in
            vcpu*) sed -n 's/^Cpus_allowed_list:[[:space:]]*//p' "$task/status" ;;
        esac
    done
}

refused() { # name, exit code, text, options...
    named=$1 code_wanted=$2 text=$3
    shift 3
    step "$named is refused" "$code_wanted" ./enclavectl create t --ring $ring "$@"
    begin "$named is told"
    grep -q -- "$text" /tmp/step && found=$text || found=$(head -3 /tmp/step)
    equal "$named is told" "$text" "$found"
}

has_arena() {
    ./enclavectl list --json | grep -q '"arenas": 1'
}

pages=${LANE_HUGE:-128} mib=1048576
cat > /data/long.inp <<'END'
&invar
  ndimen=3
  nx=4 ny=4 nz=4
  lx=4.0 ly=4.0 lz=4.0
  nang=2 ng=2
  epsi=1.0D-3 iitm=4 oitm=8
  timedep=1 tf=100000.0 nsteps=1000000
  mat_opt=1 src_opt=1 fixup=1
  popout=0
/
END

for node in 0 1; do
    other=$((1 - node)) core=$((2 * node + 1))
    create t --node $node --mem 64M --export /data=/data
    equal "the core is of node $node" $core "$(cores_of t)"
    equal "32 huge pages of node $node are taken" $((pages - 32)) "$(node_file $node free)"
    equal "the memory is on node $node" $((64 * mib)) "$(bytes_on t $node)"
    ./enclavectl run t -- ./snap-mini --input /data/long.inp > /tmp/run 2>&1 < /dev/null &
    run=$!
    begin "an arena is on node $node too"
    await has_arena
    all=$(bytes_on t $node)
    [ "$all" -gt $((64 * mib)) ] && found=yes || found="$all bytes"
    equal "an arena is on node $node too" yes "$found"
    equal "nothing is on node $other" 0 "$(bytes_on t $other)"
    equal "no huge page of node $other is taken" "$pages" "$(node_file $other free)"
    kill -TERM $run
    wait $run
    step "destroy t" 0 ./enclavectl destroy t
    step "no arena is kept" 0 ./enclavectl snap rm --all
done

create t --node 1 --mem 64M --backing small
equal "small pages are on node 1" "$((64 * mib)) 0" "$(bytes_on t 1) $(bytes_on t 0)"
step "destroy t" 0 ./enclavectl destroy t

create t --node 0 --mem 64M --backing small --no-prefault
equal "pages touched later are on node 0" 0 "$(bytes_on t 1)"
step "destroy t" 0 ./enclavectl destroy t

create t --cores 2-2 --mem 64M
equal "memory follows the cores" "$((64 * mib)) 0" "$(bytes_on t 1) $(bytes_on t 0)"
step "destroy t" 0 ./enclavectl destroy t

# The broker counts the huge pages of the whole host; those of node 0 are free.
most=$((2 * pages - 6))
create t --node 1 --mem ${most}M --export /data=/data
./enclavectl run t -- ./snap-mini --input /data/long.inp > /tmp/run 2>&1 < /dev/null &
run=$!
begin "an arena does not go to another node for huge pages"
await has_arena
equal "an arena does not go to another node for huge pages" "0 bytes, $pages pages" \
    "$(bytes_on t 0) bytes, $(node_file 0 free) pages"
kill -TERM $run
wait $run
step "destroy t" 0 ./enclavectl destroy t

create a1 --node 1 --mem 64M
create a2 --node 1 --mem 64M
equal "the second gets the node's other core" 2 "$(cores_of a2)"
refused "a third on the same node" 6 "0 of 2 usable cores of node 1" --node 1 --mem 64M
step "destroy a1" 0 ./enclavectl destroy a1
step "destroy a2" 0 ./enclavectl destroy a2

huge=$((2 * pages + 2))
refused "a node with too few huge pages" 6 \
    "$pages of $pages are free" --node 0 --mem ${huge}M --backing huge
refused "a node with too little memory" 6 "MiB of memory wanted on node 1" \
    --node 1 --mem 3G --backing small
refused "a node that is not there" 6 "node 7 does not exist" --node 7 --mem 64M
refused "a core of another node" 2 "core 3 is of node 1" --node 0 --cores 3-3 --mem 64M
refused "a node that is no number" 2 "is not a number from 0" --node none --mem 64M
rm -f /data/long.inp
