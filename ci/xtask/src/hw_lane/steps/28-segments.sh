# Programs in two enclaves share plain memory and signal each other.
create a --cores 2-2 --mem 64M
create b --cores 3-3 --mem 64M

say() { # order to a or b, and the number of answers there are then
    echo "$2" >&"$1"
    [ "$1" = 8 ] && file=/tmp/from.a || file=/tmp/from.b
    answers=$3
    await answered
}

answered() {
    [ "$(wc -l < $file)" = "$answers" ]
}

segments() { # title, bytes, bytes of a page
    mkfifo /tmp/to.a /tmp/to.b
    ./enclavectl run a -- ./peer < /tmp/to.a > /tmp/from.a 2>&1 &
    a=$!
    ./enclavectl run b -- ./peer < /tmp/to.b > /tmp/from.b 2>&1 &
    b=$!
    exec 8> /tmp/to.a 9> /tmp/to.b
    rm /tmp/to.a /tmp/to.b
    begin "b writes what a made: $1"
    say 8 "make p $2 $3 384 1" 1
    say 8 "store-own x 8 11" 2
    say 9 "lookup p 30000" 1
    say 9 "get x 1" 2
    say 9 "attach x $3 $3" 3
    say 9 "detach x" 4
    say 9 "attach x 0 0" 5
    say 9 "load x 8" 6
    say 9 "store x 16 44" 7
    say 9 "subscribe x" 8
    say 9 "signal x" 9
    say 8 "wait-own x 30000" 3
    say 8 "load-own x 16" 4
    say 8 "signal-own x" 5
    say 9 "wait x 30000" 10
    say 8 "remove x" 6
    say 9 "wait x 30000" 11
    say 9 "load x 8" 12
    exec 8>&- 9>&-
    wait $a $b
    found="$(tr -d '@\n' < /tmp/from.a), $(tr -d '@\n' < /tmp/from.b)"
    equal "b writes what a made: $1" "ok 0ok 0ok 1ok 44ok 0ok 0, \
ok 0ok 0ok $3ok 0ok $2ok 11ok 0ok 0ok 0ok 1ok 0ok 11" "$found"
}

segments "4 KiB pages" 65536 4096
segments "2 MiB pages" 8388608 2097152

mkfifo /tmp/to.a
./enclavectl run a -- ./peer < /tmp/to.a > /tmp/from.a 2>&1 &
a=$!
exec 8> /tmp/to.a
rm /tmp/to.a
begin "a shares to read"
say 8 "make p 32768 4096 256 0" 1
say 8 "store-own x 4096 1" 2
equal "a shares to read" "@ok 0 @ok 0 " "$(tr '\n' ' ' < /tmp/from.a)"
for how in nonsense many; do
    step "a program that knows no limits: $how" 0 ./enclavectl run b -- ./segment $how
done
for how in store vector execute beyond; do
    step "a segment to read is read-only: $how" 139 ./enclavectl run b -- ./segment $how
done
step "b goes on" 0 ./enclavectl run b -- /bin/busybox true
exec 8>&-
wait $a
step "destroy a and b" 0 ./enclavectl destroy a b
