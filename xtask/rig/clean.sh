# Run in the guest before each scenario: ends and removes what the one before left.
systemctl stop 'rig-*.service' 'secretfs@*.service'
rm -rf /etc/secretfs.toml /etc/secretfs.toml.d /etc/systemd/system/rig-*.service \
    /etc/systemd/system/secretfs@.service.d /run/secretfs/crash \
    /etc/systemd/system/multi-user.target.wants/rig-*.service /srv/rig
systemctl daemon-reload
systemctl reset-failed

left=$(
    dmsetup ls | grep -v '^No devices found$' || true
    losetup --noheadings --list --output NAME,BACK-FILE
    findmnt --noheadings --list --output TARGET | grep '^/mnt/' || true
)
if [ -n "$left" ]; then
    echo "left over: $left" >&2
    exit 1
fi

# Mount points of volumes are immutable.
find /mnt -mindepth 1 -type d -exec chattr -i {} +
rm -rf /var/lib/secretfs/* /mnt/*
for disk in /dev/disk/by-id/virtio-secretfs-disk-a /dev/disk/by-id/nvme-QEMU_NVMe_Ctrl_secretfs-disk-[bcd]; do
    blkdiscard --force --zeroout "$disk"
done
