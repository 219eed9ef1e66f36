# Process 1 of a machine that runs systemd, after root.sh.
rm -rf etc/kprov etc/containerd etc/cni/net.d usr/local/bin/kprov etc/systemd/system/*
for unit in systemd-udevd.service systemd-udev-trigger.service systemd-udevd-kernel.socket systemd-udevd-control.socket \
  systemd-logind.service systemd-networkd.service systemd-modules-load.service getty.target ssh.service; do
  ln -s /dev/null "etc/systemd/system/$unit"
done
mkdir etc/systemd/system/multi-user.target.wants
printf '[Service]\nExecStart=/usr/sbin/sshd -D -f %s/sshd_config\nKillMode=process\n' "$FOLDER" >etc/systemd/system/story-sshd.service
ln -s ../story-sshd.service etc/systemd/system/multi-user.target.wants/
pivot_root . .
umount -l .
exec env -i container=kprov PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --unit=multi-user.target >/dev/null 2>&1
