# Processor features: what the CPU has is on, read back from the vCPU; what
# `--without` names is off, and programs, publishes and interrupts go on.
features() {
    ./enclavectl inspect f --json | tr -d ' \n' | sed -n 's/.*"cpu_features":\[\([^]]*\)\].*/\1/p' | tr -d '"'
}

with() { # options; features expected
    wanted=$1
    shift
    create f --cores 1 --mem 64M --no-prefault "$@"
    equal "features $*" "$wanted" "$(features)"
    step "a program runs $*" 0 ./enclavectl run f -- ./tls
    step "publishes and interrupts $*" 0 ./enclavectl run f -- ./xasm-counts --small
    step "destroy f" 0 ./enclavectl destroy f
}

pcid=${LANE_PCID:+pcid,}
if [ $mode = ring0 ]; then
    with smep,smap,umip,nx,${pcid}page1g,x2apic,fsgsbase
    with smep,smap,umip,nx,${pcid}page1g,fsgsbase --without x2apic
    with nx,${pcid}x2apic,fsgsbase --without smep,smap,umip,page1g
    [ -z "$pcid" ] || with smep,smap,umip,nx,page1g,x2apic,fsgsbase --without pcid
else
    with smep,umip,nx,${pcid}page1g,fsgsbase
    with nx,${pcid}fsgsbase --without smep,umip,page1g
fi
step "nobody does without nx" 2 ./enclavectl create f --cores 1 --mem 64M --without nx
