#!/bin/bash
# Usage: rig-crash VERB VOLUME KIND NUMBER. What happens to one volume that crashes at an action; KIND and NUMBER name it
# as rig-crash.so counts. Prints what came of it in one line. Asks systemd as little as it can: a process is dear in an
# emulated machine.
set -euo pipefail

verb=$1 volume=$2 kind=$3 number=$4
service=secretfs@$volume.service
mount=/mnt/$volume
order=/run/secretfs/crash/$volume
action=

# After a kill systemd starts it again, RestartSec=2s later; that start is waited for.
bring_up() {
    for _ in {1..8}; do
        if systemctl --quiet start "$service" 2>/dev/null; then return; fi
        sleep 3
    done
    systemctl status --no-pager --lines=20 "$service" >&2
    exit 1
}

give_order() {
    mkdir -p "${order%/*}"
    echo "$1 $kind $number" >"$order"
}

# In the place of an order that was carried out stands the action.
crashed() {
    local line=
    read -r line <"$order" || true
    [[ -n $line && $line != "hang $kind $number" && $line != "kill $kind $number" ]]
}
take_note() {
    if crashed; then read -r action <"$order"; fi
    rm "$order"
}

# hang UNLESS...: waits until the volume hangs, unless the command succeeds without that.
hang() {
    until crashed || "$@"; do sleep 3; done
}
runs() { systemctl is-active --quiet "rig-app@$volume"; }
is_down() { [ "$(systemctl show --value --property=ActiveState "$service")" = inactive ]; }

report() {
    local status mounted data= consumer=
    status=$(systemctl show --value --property=StatusText "$service")
    mounted=$(findmnt --noheadings --output SOURCE,FSTYPE --mountpoint "$mount")
    if [ -e "$mount/kept" ]; then data=$(sha256sum <"$mount/kept"); fi
    if [ -e "$mount/consumer" ]; then consumer=wrote; fi
    printf '%s\t' "$volume" "$action" "$status" "$mounted" "${data%% *}"
    echo "$consumer"
}

case $verb in
forget) # The first start of all is to come.
    if [ -e "$mount" ]; then
        chattr -i "$mount"
        rmdir "$mount"
    fi
    rm -f /var/lib/secretfs/"$volume".*
    ;;
write)
    bring_up
    dd if=/dev/urandom of="$mount/kept" bs=64K count=4 conv=fsync status=none
    report
    systemctl stop "$service"
    ;;
kill-start)
    give_order kill
    bring_up
    take_note
    report
    systemctl stop "$service"
    ;;
kill-stop)
    bring_up
    give_order kill
    systemctl --quiet stop "$service" 2>/dev/null || true
    take_note
    bring_up
    report
    systemctl stop "$service"
    ;;
hang-start)
    give_order hang
    systemctl start --no-block "rig-app@$volume" "rig-mount@$volume"
    hang runs
    ;;
hang-stop)
    systemctl start "rig-app@$volume" "rig-mount@$volume"
    give_order hang
    systemctl stop --no-block "$service"
    hang is_down
    ;;
recover)
    bring_up
    report
    systemctl stop "$service"
    ;;
esac
