# What the files of steps/ are written with. Sourced with $mode set.
#
#   step NAME CODE COMMAND...   runs it (at most $limit seconds), compares codes
#   equal NAME WANTED FOUND     compares two texts
#   begin NAME                  says what is done until the next `equal`
#   create NAME OPTIONS...      an enclave in this mode
#   fact ENCLAVE KEY WANTED     compares a value of `inspect`
#   await COMMAND...            repeats it until it succeeds, 30 seconds at most
#   run_until ENCLAVE TEXT COMMAND...  starts a program, waits until it has said
#                               TEXT; its client is $run, its output /tmp/run
#
# What the last `step` wrote is in /tmp/step. A file of steps destroys its
# enclaves and ends its processes.
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
    equal "$name" "exit code $expected" "exit code $code"
}

create() {
    enclave=$1
    shift
    step "create $enclave" 0 ./enclavectl create "$enclave" --ring $ring "$@"
}

fact() {
    found=$(./enclavectl inspect "$1" --json | sed -n "s/.*\"$2\": \"\{0,1\}\([a-z0-9.]*\)\"\{0,1\}.*/\1/p" | head -1)
    equal "$2 of $1" "$3" "$found"
}

await() {
    tries=0
    until "$@"; do
        tries=$((tries + 1))
        [ $tries -gt 600 ] && return 1
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

# Ends what a file of steps left, which is a failure, and the broker, which is
# not.
nothing_left() {
    begin "$1 leaves nothing"
    (cd /programs && timeout -s KILL 20 ./enclavectl broker stop > /dev/null 2>&1)
    left=
    for program in enclavectl enclave-vmm xemem-broker spectrum; do
        if ! await_short not_running $program; then left="$left $program"; fi
    done
    used=$(awk '/HugePages_Total/ { t = $2 } /HugePages_Free/ { f = $2 } END { print t - f }' /proc/meminfo)
    # Only for the first process of the machine: everything but itself.
    [ -n "$left" ] && [ $$ = 1 ] && kill -KILL -1
    equal "$1 leaves nothing" "no process, 0 huge pages" "${left:-no process}, $used huge pages"
}

not_running() {
    ! pidof "$1" > /dev/null
}

await_short() {
    tries=0
    until "$@"; do
        tries=$((tries + 1))
        [ $tries -gt 60 ] && return 1
        usleep 50000
    done
}
