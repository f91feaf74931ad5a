# A root of its own with Debian's podman, an image that serves `ok`, and then the commands of $1: an overlay of this
# machine's, in namespaces that end with this shell; of the Debian $SUITE where that is set. Needs root. Nothing of the
# machine is changed but for empty control groups.
set -e
work=$2
mount --make-rprivate /
mkdir -p "$work" && mount -t tmpfs -o size=2g podman "$work" && cd "$work" && mkdir upper work root
mount -t overlay podman -o "lowerdir=/,upperdir=$work/upper,workdir=$work/work" root
mount --rbind /dev root/dev
mount -t proc proc root/proc
if [ -n "$SUITE" ]; then
    . root/etc/os-release
    for list in root/etc/apt/sources.list root/etc/apt/sources.list.d/*.list root/etc/apt/sources.list.d/*.sources; do
        [ ! -f "$list" ] || sed -i "s/\b$VERSION_CODENAME\b/$SUITE/g" "$list"
    done
fi
DEBIAN_FRONTEND=noninteractive chroot root sh -c '
    packages="podman crun netavark aardvark-dns iptables nftables conmon catatonit busybox-static"
    install() { apt-get install -y -qq --no-install-recommends $packages; }
    { [ -z "$SUITE" ] && install; } || { apt-get update -qq && install; }' > "$work/apt.log" 2>&1 || { tail -5 "$work/apt.log" >&2; exit 3; }
mount --rbind /sys root/sys
! mountpoint -q root/sys/fs/cgroup/unified || umount root/sys/fs/cgroup/unified # crun knows v1 or v2, not both
for directory in run var/lib/containers; do mkdir -p root/$directory; mount -t tmpfs tmpfs root/$directory; done
image=root/srv/image
mkdir -p $image/bin $image/www
cp root/bin/busybox $image/bin/
echo ok > $image/www/health
exec unshare --net sh -ec '
    ip link set lo up
    chroot root sh -ec "tar c -C /srv/image . | podman import --quiet - web:1 > /dev/null"
    exec chroot root sh -e "$0"' "$1"
