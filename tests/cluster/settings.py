"""What the cluster's programs are told: command lines and files of settings. Pure but for the writing of the files."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cluster import NODE, NODE_ADDRESS, REFUSING_REGISTRY, REGISTRY
from tests.cluster.certificates import SERVICE_ADDRESS
from tests.cluster.programs import CONTAINERD, containerd

PAUSE_IMAGE = "hubflow.test/pause:1"
POD_BRIDGE = "hubkube0"
_ETCD = "http://127.0.0.1:2379"
_PODS = "10.251.0.0/16"
_SERVICES = f"{SERVICE_ADDRESS.rpartition('.')[0]}.0/24"
_KWOK_PORT = 10247
"""Where the simulated nodes' kubelet answers; it is asked for logs."""
_GATES = ["--feature-gates=ImageVolume=true"] if CONTAINERD else []
"""What Kubernetes has switched on by itself since 1.35."""
_STAGES = Path(__file__).with_name("stages.yaml")


def commands(folder: Path, programs: Path) -> dict[str, list[str]]:
    """Name -> command line, in the order in which they start."""
    pki = folder / "pki"

    def config(name: str) -> str:
        return f"--kubeconfig={folder / name}.kubeconfig"

    def program(name: str, *arguments: str) -> list[str]:
        return [str(programs / name), *arguments]

    return {
        "etcd": program(
            "etcd",
            f"--data-dir={folder / 'etcd'}",
            "--unsafe-no-fsync",  # nobody needs this cluster after a power failure
            f"--listen-client-urls={_ETCD}",
            f"--advertise-client-urls={_ETCD}",
            "--listen-peer-urls=http://127.0.0.1:2380",
            "--log-level=warn",
        ),
        "kube-apiserver": program(
            "kube-apiserver",
            f"--etcd-servers={_ETCD}",
            "--bind-address=0.0.0.0",
            f"--advertise-address={NODE_ADDRESS}",
            "--secure-port=6443",
            f"--cert-dir={folder / 'apiserver'}",
            f"--tls-cert-file={pki / 'apiserver.crt'}",
            f"--tls-private-key-file={pki / 'apiserver.key'}",
            f"--client-ca-file={pki / 'ca.crt'}",
            f"--service-account-key-file={pki / 'sa.pub'}",
            f"--service-account-signing-key-file={pki / 'sa.key'}",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-cluster-ip-range={_SERVICES}",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--allow-privileged=true",
            *_GATES,
            f"--kubelet-client-certificate={pki / 'to-kubelet.crt'}",
            f"--kubelet-client-key={pki / 'to-kubelet.key'}",
            "--kubelet-preferred-address-types=InternalIP",
        ),
        "kube-controller-manager": program(
            "kube-controller-manager",
            config("kube-controller-manager"),
            "--leader-elect=false",
            f"--service-account-private-key-file={pki / 'sa.key'}",
            f"--root-ca-file={pki / 'ca.crt'}",
            "--use-service-account-credentials=true",
            # A node that is killed is missed in 20 s, not in 50: tests wait for it.
            "--node-monitor-period=2s",
            "--node-monitor-grace-period=20s",
            # A claim whose volume somebody else took at the same moment waits for this.
            "--pvclaimbinder-sync-period=1s",
        ),
        # With the usual limit of its client, the scheduler is what simulated nodes wait for.
        "kube-scheduler": program(
            "kube-scheduler",
            config("kube-scheduler"),
            "--leader-elect=false",
            "--kube-api-qps=500",
            "--kube-api-burst=1000",
        ),
        "containerd": [str(containerd()), f"--config={folder / 'containerd.toml'}"],
        "kubelet": program(
            "kubelet",
            config("kubelet"),
            f"--config={folder / 'kubelet.json'}",
            f"--root-dir={folder / 'kubelet'}",
            f"--cert-dir={folder / 'kubelet-pki'}",
            f"--hostname-override={NODE}",
            f"--node-ip={NODE_ADDRESS}",
            *_GATES,
        ),
        "kube-proxy": program("kube-proxy", f"--config={folder / 'kube-proxy.json'}"),
        "coredns": program("coredns", f"-conf={folder / 'Corefile'}"),
        "kwok": program(
            "kwok",
            config("admin"),
            f"--config={_STAGES}",
            f"--config={folder / 'kwok-logs.json'}",
            "--manage-all-nodes=false",
            "--manage-nodes-with-annotation-selector=kwok.x-k8s.io/node=fake",
            "--node-lease-duration-seconds=40",
            f"--node-ip={NODE_ADDRESS}",
            f"--node-port={_KWOK_PORT}",
            f"--server-address={NODE_ADDRESS}:{_KWOK_PORT}",
        ),
    }


def write(folder: Path) -> None:
    """The files that the command lines name."""
    _write_json(folder / "kubelet.json", _kubelet(folder))
    _write_json(folder / "kube-proxy.json", _proxy(folder))
    _write_json(folder / "cni" / "10-bridge.conflist", _network())
    (folder / "containerd.toml").write_text(_containerd(folder))
    (folder / "Corefile").write_text(_dns(folder))
    (folder / "simulated.log").touch()
    _write_json(folder / "kwok-logs.json", _simulated_logs(folder / "simulated.log"))
    for registry in (REGISTRY, REFUSING_REGISTRY):
        hosts = folder / "registries" / registry / "hosts.toml"
        hosts.parent.mkdir(parents=True, exist_ok=True)
        hosts.write_text(f'server = "http://{registry}"\n[host."http://{registry}"]\n')


def _kubelet(folder: Path) -> dict[str, object]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(folder / "pki/ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "cgroupDriver": "cgroupfs",
        "failCgroupV1": False,
        "failSwapOn": False,
        "enforceNodeAllocatable": [],
        "containerRuntimeEndpoint": f"unix://{folder / 'containerd.sock'}",
        "clusterDNS": [NODE_ADDRESS],
        "clusterDomain": "cluster.local",
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {"memory.available": "100Mi"},
        "nodeLeaseDurationSeconds": 16,
        "containerLogMaxSize": "20Mi",
        # Not 10 s: a test waits for it.
        "containerLogMonitorInterval": "3s",
        "maxPods": 500,
    }


def _proxy(folder: Path) -> dict[str, object]:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": str(folder / "kube-proxy.kubeconfig")},
        "mode": "iptables",
        "clusterCIDR": _PODS,
        "hostnameOverride": NODE,
        "conntrack": {"maxPerCore": 0, "min": 0},
    }


def _simulated_logs(log: Path) -> dict[str, object]:
    """What every container on a simulated node has printed: nothing."""
    return {
        "apiVersion": "kwok.x-k8s.io/v1alpha1",
        "kind": "ClusterLogs",
        "metadata": {"name": "all"},
        "spec": {"logs": [{"logsFile": str(log), "follow": False}]},
    }


def _network() -> dict[str, object]:
    addresses = {"type": "host-local", "ranges": [[{"subnet": _PODS}]], "routes": [{"dst": "0.0.0.0/0"}]}
    bridge = {"type": "bridge", "bridge": POD_BRIDGE, "isGateway": True, "ipam": addresses}
    ports = {"type": "portmap", "capabilities": {"portMappings": True}}
    return {"cniVersion": "0.4.0", "name": "pods", "plugins": [bridge, ports]}


def _containerd(folder: Path) -> str:
    # Network namespaces below the state, so that the cluster's end finds exactly its own.
    return f"""version = 2
root = "{folder}/containerd/root"
state = "{folder}/containerd/state"
[grpc]
  address = "{folder}/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  restrict_oom_score_adj = true
  disable_hugetlb_controller = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "{folder}/registries"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{folder}/cni"
"""


def _dns(folder: Path) -> str:
    return f"""cluster.local:53 {{
  bind {NODE_ADDRESS}
  errors
  kubernetes cluster.local {{
    kubeconfig {folder}/admin.kubeconfig
  }}
}}
"""


def _write_json(path: Path, document: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2))
