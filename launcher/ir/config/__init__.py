"""The composed and validated config as frozen types. Pure.

Field names are the YAML keys. A field named `*_bytes` also takes `"18GB"` or `"500GiB"` (see `launcher.sizes`). A field
without a default must be written. Mappings are keyed by the name that other entries refer to.
"""

from launcher.ir.config.fleet import (
    Composed,
    EscalationConfig,
    FleetConfig,
    OrchestrationConfig,
    PoolConfig,
    ProfileConfig,
    RoutingConfig,
    RungConfig,
    SourceMap,
    StatedTotals,
    ValidationConfig,
    ValidationPolicy,
    WarmPoolConfig,
)
from launcher.ir.config.resources import (
    ArchitectureConfig,
    CpuConfig,
    GpuConfig,
    HardwareConfig,
    HostConfig,
    KvType,
    LoadMode,
    ModelConfig,
    ModelFileConfig,
    NumaNodeConfig,
    OwnKvType,
    ProjectorConfig,
    SplitMode,
    Start,
)
from launcher.ir.config.runtime import (
    ContainerConfig,
    DeployConfig,
    ExportName,
    FrontConfig,
    HookConfig,
    ImageConfig,
    KubernetesConfig,
    RuntimeConfig,
    ServiceConfig,
    SlurmConfig,
    UpstreamConfig,
)
from launcher.ir.config.servers import (
    CacheTypeConfig,
    DraftConfig,
    EngineConfig,
    FaceConfig,
    LoraConfig,
    NgramConfig,
    NumaConfig,
    ServerConfig,
    TierConfig,
)
