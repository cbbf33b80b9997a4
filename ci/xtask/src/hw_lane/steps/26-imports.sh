# A program in one enclave follows what a program in another publishes.
create a --cores 2-2 --mem 64M
create b --cores 3-3 --mem 64M

has_lines() { # count, file
    [ "$(wc -l < "$2")" = "$1" ]
}

imports() { # title, bytes, bytes of a chunk, policy
    title=$1
    mkfifo /tmp/to.a /tmp/to.b
    ./enclavectl run a -- ./xasm-bench < /tmp/to.a > /tmp/from.a 2>&1 &
    a=$!
    ./enclavectl run b -- ./xasm-bench < /tmp/to.b > /tmp/from.b 2>&1 &
    b=$!
    exec 8> /tmp/to.a 9> /tmp/to.b
    rm /tmp/to.a /tmp/to.b
    begin "b attaches: $title"
    echo "make q $2 $3 4 discard-newest 0" >&8
    echo "attach q $4 30000" >&9
    await grep -q "^ok $2 $3" /tmp/from.b
    equal "b attaches: $title" 0 $?
    begin "b follows: $title"
    echo "follow q 300 60000" >&9
    echo "storm q 300 2" >&8
    await grep -q "^ok 300" /tmp/from.a
    await has_lines 2 /tmp/from.b
    echo "end q" >&8
    echo "follow q 999999 60000" >&9
    echo "look q" >&9
    exec 8>&- 9>&-
    wait $a $b
    cat /tmp/from.a /tmp/from.b
    # Torn, last generation; at the end none torn, closed; whole, valid.
    found=$(awk 'NR == 2 { print $4, $6 } NR == 3 { print $4, $7 } NR == 4 { print $3, $4 }' \
        /tmp/from.b | tr '\n' ' ')
    equal "b follows: $title" "0 300 0 1 1 1 " "$found"
}

imports "2 MiB chunks, the newest" 12582912 2097152 latest
imports "4 KiB chunks, each one" 65536 4096 every

mkfifo /tmp/to.a
./enclavectl run a -- ./xasm-bench < /tmp/to.a > /tmp/from.a 2>&1 &
a=$!
exec 8> /tmp/to.a
rm /tmp/to.a
echo "make q 8192 4096 4 discard-newest 0" >&8
echo "step q" >&8
begin "a publishes one generation"
await grep -q "^ok 1" /tmp/from.a
equal "a publishes one generation" 0 $?
step "calls that make no sense" 0 ./enclavectl run b -- ./import nonsense
for how in store vector early execute; do
    step "an import is read-only: $how" 139 ./enclavectl run b -- ./import $how
done
step "b goes on" 0 ./enclavectl run b -- /bin/busybox true
exec 8>&-
wait $a
step "destroy a and b" 0 ./enclavectl destroy a b
