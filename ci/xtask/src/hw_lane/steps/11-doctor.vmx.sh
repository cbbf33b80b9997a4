# The platform has its name.
step "doctor" "0" ./enclavectl doctor
equal "doctor names the platform" 1 "$(grep -c 'VMX (kvm_intel)' /tmp/step)"
