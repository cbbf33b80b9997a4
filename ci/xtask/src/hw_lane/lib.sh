# What the files of steps/ are written with. Sourced with $mode set.
#
#   step NAME CODE COMMAND...   runs it (at most $limit seconds), compares exit
#                               codes; 3|139 allows two
#   equal NAME WANTED FOUND     compares two texts
#   begin NAME                  says what is done until the next `equal`
#   create NAME OPTIONS...      an enclave in this mode
#   fact ENCLAVE KEY WANTED     compares a value of `inspect`
#   state ENCLAVE               prints what `list` says of it
#   await COMMAND...            repeats it until it succeeds, 30 seconds at most
#   simulate ENCLAVE ARENA DECK OPTIONS...
#                               a reader that waits, then snap-mini; $reader and
#                               $sim, outputs /tmp/read.ENCLAVE, /tmp/sim.ENCLAVE
#   seen ENCLAVE COUNT          has that reader so many snapshots?
#   verified ENCLAVE            how many it verified, once it has ended
#   $WHOLE, whole ENCLAVE CODE  what to expect, and what a reader said and ended
#                               with that may have missed snapshots
#   ended PROCESS               its exit code; after 60 seconds it is killed
#   run_until ENCLAVE TEXT COMMAND...  starts a program, waits until it has said
#                               TEXT; its client is $run, its output /tmp/run
#
# What the last `step` wrote is in /tmp/step. /data is made anew for each file:
# input decks of 5, 40 and 150 time steps (tiny, long, longer) and 100 KiB of
# noise. A file of steps destroys its enclaves and ends its processes.
limit=60

begin() {
    echo "STEP run  $mode $1"
}

equal() {
    if [ "$2" = "$3" ]; then
        echo "STEP ok   $mode $1"
    else
        echo "STEP FAIL $mode $1: $3, expected $2"
        echo "$mode $1" >> /tmp/lane/failed
    fi
}

step() {
    name=$1 expected=$2
    shift 2
    begin "$name"
    timeout -s KILL $limit "$@" > /tmp/step 2>&1 < /dev/null
    code=$?
    cat /tmp/step
    case "|$expected|" in
    *"|$code|"*) equal "$name" ok ok ;;
    *) equal "$name" "exit code $expected" "exit code $code" ;;
    esac
}

create() {
    enclave=$1
    shift
    step "create $enclave" 0 ./enclavectl create "$enclave" --ring $ring $LANE_CREATE "$@"
}

fact() {
    found=$(./enclavectl inspect "$1" --json | sed -n "s/.*\"$2\": \"\{0,1\}\([a-z0-9.]*\)\"\{0,1\}.*/\1/p" | head -1)
    equal "$2 of $1" "$3" "$found"
}

now() {
    cut -d . -f 1 /proc/uptime
}

await() {
    until_then=$(($(now) + 30))
    until "$@"; do
        [ "$(now)" -gt $until_then ] && return 1
        usleep 50000
    done
}

run_until() {
    in=$1 text=$2
    shift 2
    rm -f /tmp/run
    ./enclavectl run "$in" -- "$@" > /tmp/run 2>&1 < /dev/null &
    run=$!
    await grep -q "$text" /tmp/run
}

clients() {
    ./enclavectl broker status --json 2> /dev/null | sed -n 's/.*"clients": \([0-9]*\).*/\1/p'
}

# The reader asks for a name that nobody has yet, and sleeps.
reader_waits() {
    [ "$(clients)" -gt "${before:-0}" ] &&
        [ "$(awk '{ print $3 }' "/proc/$(pidof spectrum | cut -d ' ' -f 1)/stat")" = S ]
}

simulate() {
    enclave=$1 arena=$2 deck=$3
    before=$(clients)
    shift 3
    timeout -s KILL 100 ./spectrum "$arena" --json --timeout 30 \
        > "/tmp/read.$enclave" 2>&1 < /dev/null &
    reader=$!
    await reader_waits
    ./enclavectl run "$enclave" -- ./snap-mini --input "/data/$deck.inp" \
        --arena "$arena" "$@" > "/tmp/sim.$enclave" 2>&1 < /dev/null &
    sim=$!
}

snapshots() {
    grep -c '"type":"step"' "/tmp/read.$1"
}

seen() {
    [ "$(snapshots "$1")" -ge "$2" ]
}

verified() {
    sed -n 's/.*"verified":\([0-9]*\).*"torn":\([0-9]*\).*/\1 verified, \2 torn/p' "/tmp/read.$1"
}

WHOLE="0 unverified, 0 torn, closed by its program, exit code 0"
whole() {
    sed -n 's/.*"verified":[1-9][0-9]*,"unverified":\([0-9]*\),"torn":\([0-9]*\),.*"end":"\(.*\)".*/\1 unverified, \2 torn, \3/p' \
        "/tmp/read.$1" | sed "s/\$/, exit code $2/"
}

ended() {
    (sleep 60; kill -KILL "$1") 2> /dev/null &
    guard=$!
    wait "$1"
    code=$?
    kill $guard
    return $code
}

state() {
    ./enclavectl list | awk -v name="$1" '$1 == name { print $2 }'
}

# Ends what a file of steps left, which is a failure, and the broker, which is
# not.
nothing_left() {
    begin "$1 leaves nothing"
    # What is kept for reading after the end goes when told to.
    (cd /programs && timeout -s KILL 20 ./enclavectl snap rm --all > /dev/null 2>&1)
    (cd /programs && timeout -s KILL 20 ./enclavectl broker stop > /dev/null 2>&1)
    left=
    for program in enclavectl enclave-vmm xemem-broker spectrum; do
        await not_running $program || left="$left $program"
    done
    used=$(awk '/HugePages_Total/ { t = $2 } /HugePages_Free/ { f = $2 } END { print t - f }' /proc/meminfo)
    # Only for the first process of the machine: everything but itself.
    if [ -n "$left" ] && [ $$ = 1 ]; then
        kill -KILL -1
        [ -n "$LANE_KMSG" ] && log_console
    fi
    equal "$1 leaves nothing" "no process, 0 huge pages" "${left:-no process}, $used huge pages"
}

not_running() {
    ! pidof "$1" > /dev/null
}
