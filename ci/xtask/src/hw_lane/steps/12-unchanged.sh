# Programs nobody here wrote: busybox prints in an enclave what it prints here.
create t --cores 1 --mem 64M --export /data=/data
same() { # name, applet and arguments...
    name=$1
    shift
    begin "$name"
    expected=$(/bin/busybox "$@" 2>&1; echo "exit code $?")
    found=$(timeout -s KILL $limit ./enclavectl run t -- /bin/busybox "$@" 2>&1 < /dev/null; echo "exit code $?")
    equal "$name" "$expected" "$found"
}
same "busybox sha256sum" sha256sum /data/tiny.inp /data/noise
same "busybox md5sum" md5sum /data/noise
same "busybox awk" awk '{ s += length($0) * sin(NR) } END { printf "%.9f %d\n", s, NR }' /data/tiny.inp
same "busybox sort" sort -r /data/tiny.inp
same "busybox od" od -A x -t x1 -N 256 /data/noise
same "busybox without its file" cat /data/none
step "destroy t" 0 ./enclavectl destroy t
