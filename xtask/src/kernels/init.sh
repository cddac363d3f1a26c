#!/tools/busybox sh
# Process 1 of a guest. Lines that begin with @@ are for the program that booted the guest.
/tools/busybox mkdir -p /applets
/tools/busybox --install -s /applets
export PATH=/tools:/applets HOME=/root RUST_BACKTRACE=0
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs run /run
mount -t bpf bpf /sys/fs/bpf
mkdir -p /run/netns /var/lib /dev/shm
ulimit -n 65536
exec </dev/null
for module in /modules/*; do insmod "$module" || echo "@@ trouble $module cannot be loaded"; done
ip link set lo up
# Gives the cards names that no host of a test has.
cards=0
for interface in /sys/class/net/*; do
    if [ -e "$interface/device" ]; then
        ip link set "${interface##*/}" name card$cards
        cards=$((cards + 1))
    fi
done

up() { cut -d. -f1 /proc/uptime; }

suite() {
    name=$1
    shift
    start=$(up)
    timeout 3600 "$@" >/run/output 2>&1
    code=$?
    grep -oE '[a-z]+: [0-9]+ verified instructions' /run/output | sed 's/^/@@ /'
    if [ $code != 0 ]; then
        grep -E '^test .*FAILED' /run/output
        tail -n 300 /run/output | cut -c1-600
    fi
    echo "@@ suite $name $code $(($(up) - start))"
}

. /suites
dmesg | grep -B 4 -A 20 -E 'WARNING:|BUG:|Oops|Call Trace|blocked for more than' | head -n 60 | sed 's/^/@@ trouble /'
echo "@@ end"
poweroff -f
