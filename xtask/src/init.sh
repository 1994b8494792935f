#!/bin/busybox sh
# The guest's first program: says that it runs, does what the kernel command line asks for
# (slat.run=TASK,TASK,... and slat.shell), and powers the machine off.
#
# Lines that begin with "slat-guest: " are read by `cargo xtask`.

# Before anything else, since the time from entry to here is measured.
/bin/slat-agent counter init

export PATH=/bin
mount() { busybox mount "$@"; }
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev

say() { echo "slat-guest: $*"; }

# Kernel messages would come between the words of a program that shares the console with them.
# Warnings and worse still show.
echo 5 > /proc/sys/kernel/printk

# What the guest believes to have. Nested entries of /proc/iomem are indented.
ram=0
while IFS= read -r line; do
    case $line in
    [0-9a-f]*" : System RAM")
        range=${line%% *}
        ram=$((ram + 0x${range#*-} - 0x${range%-*} + 1))
        ;;
    esac
done < /proc/iomem
while read -r name value unit; do
    [ "$name" = MemTotal: ] && total=$value
done < /proc/meminfo
say "memory system_ram=$ram mem_total_kib=$total"

# The large memory BAR of the ivshmem device (vendor 1af4, device 1110).
touch_bar() {
    for device in /sys/bus/pci/devices/*; do
        read -r vendor < "$device/vendor"
        read -r id < "$device/device"
        if [ "$vendor:$id" = 0x1af4:0x1110 ]; then
            echo 1 > "$device/enable"
            slat-agent bar "$device/resource2"
            return
        fi
    done
    say "error no ivshmem device"
    return 1
}

failures=0
shell=
for word in $(busybox cat /proc/cmdline); do
    case $word in
    slat.shell) shell=yes ;;
    slat.run=*)
        for task in $(echo "${word#slat.run=}" | busybox tr , ' '); do
            case $task in
            bar) touch_bar ;;
            hole:*) slat-agent hole "${task#hole:}" ;;
            check:*) slat-agent check $(echo "${task#check:}" | busybox tr : ' ') /data/* ;;
            *) say "error unknown task $task"; false ;;
            esac || failures=$((failures + 1))
        done
        ;;
    esac
done

if [ -n "$shell" ]; then
    busybox --install -s /bin
    echo "This is the guest's shell. Leave it with 'exit' to power the guest off."
    cd /
    setsid cttyhack sh
fi

/bin/slat-agent counter end
say "done failures=$failures"
busybox poweroff -f
