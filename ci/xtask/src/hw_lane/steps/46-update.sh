# Memory comes to a running enclave and goes again while its program computes, with
# the kernel in ring 0, whose direct map hardware walks; huge pages go back whole.
free_pages() {
    awk '/HugePages_Free/ { print $2 }' /proc/meminfo
}

# Tells the program a line; what it answers is in /tmp/grown.
tell() { # name, line, answer
    begin "$1"
    lines=$(wc -l < /tmp/grown)
    echo "$2" >&7
    await answered $lines || look
    equal "$1" "$3" "$(tail -n 1 /tmp/grown)"
}

# Where a program is that does not answer.
look() {
    timeout -s KILL 20 ./enclavectl list
    for n in 1 2; do timeout -s KILL 20 ./enclavectl debug dump m; done
    timeout -s KILL 20 ./enclavectl logs m
}

answered() {
    [ "$(wc -l < /tmp/grown)" -gt "$1" ]
}

for cores in 1 2; do
    before=$(free_pages)
    create m --cores $cores --share-cores --mem 64M --backing huge
    created=$(free_pages)
    rm -f /tmp/orders
    : > /tmp/grown
    mkfifo /tmp/orders
    exec 7<> /tmp/orders
    ./enclavectl run m -- ./grow < /tmp/orders > /tmp/grown 2>&1 &
    run=$!
    tell "it has what it was created with on $cores cores" total 64
    step "memory is added on $cores cores" 0 ./enclavectl update m --add-mem 256M
    equal "it is huge pages on $cores cores" $((created - 128)) "$(free_pages)"
    tell "the program sees it on $cores cores" total 320
    tell "the program uses it on $cores cores" "take 200" taken
    step "memory in use stays on $cores cores" 4 ./enclavectl update m --remove-mem 256M
    tell "it holds what was written on $cores cores" check right
    step "more than there is is refused on $cores cores" 6 \
        ./enclavectl update m --add-mem 512M
    equal "nothing of it was taken on $cores cores" $((created - 128)) "$(free_pages)"
    tell "the program gives it back on $cores cores" free freed
    step "memory goes on $cores cores" 0 ./enclavectl update m --remove-mem 256M
    equal "the host has it again on $cores cores" "$created" "$(free_pages)"
    tell "the program sees that, too, on $cores cores" total 64

    begin "10 rounds on $cores cores lose no page"
    failed=0
    for round in $(seq 10); do
        for change in --add-mem --remove-mem; do
            ./enclavectl update m $change 128M > /tmp/step 2>&1 && continue
            failed=$((failed + 1))
            cat /tmp/step
        done
    done
    equal "10 rounds on $cores cores lose no page" "0 failed, $created free" \
        "$failed failed, $(free_pages) free"
    tell "the program computes on $cores cores" "take 20" taken
    echo end >&7
    ended $run
    equal "it ends well on $cores cores" 0 $?
    exec 7>&-

    step "memory is added to be lost on $cores cores" 0 ./enclavectl update m --add-mem 128M
    pid=$(./enclavectl inspect m --json | sed -n 's/.*"pid": \([0-9]*\).*/\1/p' | head -1)
    kill -KILL "$pid"
    begin "a VMM that is killed leaves no page on $cores cores"
    all_free() { [ "$(free_pages)" = "$before" ]; }
    await all_free
    equal "a VMM that is killed leaves no page on $cores cores" "$before" "$(free_pages)"
    step "destroy m" 0 ./enclavectl destroy m
done
