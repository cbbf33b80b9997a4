# `doctor` names what this machine is.
if [ "$LANE_NPT" = 0 ]; then paging="has npt off"; else paging="nested (npt)"; fi
step "doctor" 0 ./enclavectl doctor
for text in "platform    SVM (kvm_amd): ring 0 runs natively" "kvm_api     has all" \
    "protection  a program can reach neither" \
    "on in enclaves: smep, smap, umip, nx, page1g, x2apic, fsgsbase" "$paging" "a virtual machine itself" \
    "node 0: cores 0-1" "node 1: cores 2-3"; do
    begin "doctor says $text"
    grep -qF -- "$text" /tmp/step && found=$text || found="something else"
    equal "doctor says $text" "$text" "$found"
done
