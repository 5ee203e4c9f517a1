{{/* Values that do not go together, and durations beyond what the programs take: they would end at
their start. The schema has looked at each value alone. */}}
{{- define "gpuscaler.check" -}}
{{- $v := .Values -}}
{{- if and $v.priorityClass.create (not $v.priorityClass.name) }}
{{- fail "priorityClass.create is true and priorityClass.name empty: name it, or set priorityClass.create=false" }}
{{- end }}
{{- if and $v.front.enabled (not (and $v.peers.enabled $v.podResources.enabled)) }}
{{- fail (printf "front.enabled is true, with peers.enabled %t and podResources.enabled %t: a front knows of GPUs from its peers alone, and answers for workloads; set both to true" $v.peers.enabled $v.podResources.enabled) }}
{{- end }}
{{- if and (not $v.kubernetes.enabled) (or $v.podResources.enabled $v.peers.enabled) }}
{{- fail (printf "kubernetes.enabled is false, with podResources.enabled %t and peers.enabled %t: both need the Kubernetes API; set all three to false, or kubernetes.enabled=true" $v.podResources.enabled $v.peers.enabled) }}
{{- end }}
{{- if and $v.tls.clientCASecretName (not $v.tls.secretName) }}
{{- fail (printf "tls.clientCASecretName is %q and tls.secretName empty: client certificates need TLS; set tls.secretName" $v.tls.clientCASecretName) }}
{{- end }}
{{- if and $v.peerTLS.certManager (not $v.peerTLS.secretName) }}
{{- fail "peerTLS.certManager is true and peerTLS.secretName empty: name the Secret that cert-manager shall make, e.g. gpuscaler-peer-tls" }}
{{- end }}
{{- if and $v.peerTLS.secretName (not $v.peers.enabled) }}
{{- fail (printf "peerTLS.secretName is %q and peers.enabled false: there are no peers to talk to; set peers.enabled=true" $v.peerTLS.secretName) }}
{{- end }}
{{- if and $v.prometheus.podMonitor.enabled $v.networkPolicy.enabled (not $v.prometheus.namespace) }}
{{- fail "prometheus.podMonitor.enabled is true and prometheus.namespace empty: the NetworkPolicy would let no Prometheus in; set prometheus.namespace to the one it runs in" }}
{{- end }}
{{- $scaler := $v.flags.scaler }}
{{- if and (hasKey $scaler "peer-tls-name") (not $v.peerTLS.secretName) }}
{{- fail "flags.scaler.peer-tls-name is given and peerTLS.secretName empty: there is no TLS between scalers; set peerTLS.secretName" }}
{{- end }}
{{- $stale := get $scaler "stale-after" | default "10s" }}
{{- include "gpuscaler.within" (list "flags.scaler.stale-after" $stale "1s" "1h" "") }}
{{- include "gpuscaler.within" (list "flags.scaler.attribution-stale-after" (get $scaler "attribution-stale-after" | default "2m") $stale "1h" ": not below flags.scaler.stale-after") }}
{{- $half := printf "%dms" (div (include "gpuscaler.ms" $stale) 2) }}
{{- if $v.peers.enabled }}
{{- include "gpuscaler.within" (list "flags.scaler.peer-interval" (get $scaler "peer-interval" | default "2s") "100ms" $half ": half of flags.scaler.stale-after") }}
{{- end }}
{{- range $name, $profile := $v.profiles }}
{{- $target := round (float64 $profile.targetValue) 3 }}
{{- $most := ternary 1e15 100.0 (eq (get $profile "aggregation") "sum") }}
{{- if and (regexMatch "_(utilization|percent|activity|occupancy)$" $profile.metricType) (not (hasPrefix "x_" $profile.metricType)) (or (le $target 1.0) (gt $target $most)) }}
{{- fail (printf "profiles.%s.targetValue is %v, and %s is in percent; allowed is above 1 and at most 100, or more with aggregation sum" $name $profile.targetValue $profile.metricType) }}
{{- end }}
{{- end }}
{{- if and (eq $v.daemonSet.gpuNodes "selector") (not (omit ($v.daemonSet.nodeSelector | default dict) "kubernetes.io/os" "kubernetes.io/arch")) (not $v.nvidia.operatorManaged) }}
{{- fail "daemonSet.gpuNodes is selector and daemonSet.nodeSelector names no label of GPU nodes: the pods would go to all nodes; add one, or set daemonSet.gpuNodes=labels" }}
{{- end }}
{{- if and $v.nvidia.operatorManaged (hasKey ($v.daemonSet.nodeSelector | default dict) $v.nvidia.operatorLabel) }}
{{- fail (printf "daemonSet.nodeSelector has %s, which nvidia.operatorManaged sets; remove it there" $v.nvidia.operatorLabel) }}
{{- end }}
{{- include "gpuscaler.ownLabels" (list "daemonSet.podLabels" $v.daemonSet.podLabels) }}
{{- include "gpuscaler.ownLabels" (list "front.podLabels" $v.front.podLabels) }}
{{- if and $v.nvidia.nri (hasKey ($v.daemonSet.podAnnotations | default dict) "nvidia.cdi.k8s.io/container.nvmlsidecar") }}
{{- fail "daemonSet.podAnnotations has nvidia.cdi.k8s.io/container.nvmlsidecar, which nvidia.nri sets; remove it there, and name the device in nvidia.nriDevice" }}
{{- end }}
{{- include "gpuscaler.env" (list "daemonSet.extraEnv.scaler" $v.daemonSet.extraEnv.scaler (list "GOMEMLIMIT")) }}
{{- include "gpuscaler.env" (list "daemonSet.extraEnv.nvmlsidecar" $v.daemonSet.extraEnv.nvmlsidecar (ternary (list "LD_LIBRARY_PATH") list $v.gke.enabled)) }}
{{- include "gpuscaler.env" (list "daemonSet.extraEnv.podresources" $v.daemonSet.extraEnv.podresources (list "GOMEMLIMIT")) }}
{{- include "gpuscaler.env" (list "front.extraEnv" $v.front.extraEnv (list "GOGC" "GOMEMLIMIT")) }}
{{- $sidecar := $v.flags.nvmlsidecar }}
{{- include "gpuscaler.within" (list "flags.nvmlsidecar.interval" (get $sidecar "interval" | default "1s") "100ms" "1m" "") }}
{{- include "gpuscaler.within" (list "flags.nvmlsidecar.interval" (get $sidecar "interval" | default "1s") "100ms" $half ": half of flags.scaler.stale-after") }}
{{- include "gpuscaler.within" (list "flags.nvmlsidecar.hang-timeout" (get $sidecar "hang-timeout" | default "30s") "1s" "24h" "") }}
{{- $timeout := get $sidecar "container-timeout" | default "2m" }}
{{- if ne $timeout "0s" }}
{{- include "gpuscaler.within" (list "flags.nvmlsidecar.container-timeout" $timeout "1s" "24h" ", or 0s") }}
{{- end }}
{{- include "gpuscaler.within" (list "flags.podresources.interval" (get $v.flags.podresources "interval" | default "3s") "1s" "5s" "") }}
{{- end -}}

{{/* Of (list KEY ENV OWN): a name that is there twice is no error for Kubernetes, which takes the last. */}}
{{- define "gpuscaler.env" -}}
{{- $seen := dict -}}
{{- range index . 1 -}}
{{- if hasPrefix "GPUSCALER_" .name -}}
{{- fail (printf "%s has %s: flags are set in flags, and the others by the values they belong to" (index $ 0) .name) -}}
{{- end -}}
{{- if has .name (index $ 2) -}}
{{- fail (printf "%s has %s, which the chart sets" (index $ 0) .name) -}}
{{- end -}}
{{- if hasKey $seen .name -}}
{{- fail (printf "%s has %s twice" (index $ 0) .name) -}}
{{- end -}}
{{- $_ := set $seen .name true -}}
{{- end -}}
{{- end -}}

{{/* Of (list KEY LABELS): the labels that the chart gives to its pods. */}}
{{- define "gpuscaler.ownLabels" -}}
{{- range $name, $_ := index . 1 -}}
{{- if has $name (list "app.kubernetes.io/name" "app.kubernetes.io/component" "app.kubernetes.io/part-of" "app.kubernetes.io/instance") -}}
{{- fail (printf "%s has %s, which the chart sets" (index $ 0) $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Of (list KEY VALUE LEAST MOST WHY): the programs' limits. */}}
{{- define "gpuscaler.within" -}}
{{- $ms := include "gpuscaler.ms" (index . 1) | int64 -}}
{{- if or (lt $ms (include "gpuscaler.ms" (index . 2) | int64)) (gt $ms (include "gpuscaler.ms" (index . 3) | int64)) -}}
{{- fail (printf "%s is %s; allowed is %s to %s%s" (index . 0) (index . 1) (index . 2) (index . 3) (index . 4)) -}}
{{- end -}}
{{- end -}}

{{/* A duration like 500ms, 5s or 2m in milliseconds. */}}
{{- define "gpuscaler.ms" -}}
{{- $unit := get (dict "ms" 1 "s" 1000 "m" 60000 "h" 3600000) (regexFind "[a-z]+$" .) -}}
{{- mul (regexFind "^[0-9]+" . | int64) $unit -}}
{{- end -}}

{{/* Of (list $ NAME): a file of the chart. Links are lost in some ways of delivery. */}}
{{- define "gpuscaler.file" -}}
{{- $text := (index . 0).Files.Get (index . 1) -}}
{{- if not (contains "\n" $text) -}}
{{- fail (printf "%s is missing in the chart: it is a link to a file outside; make a package with \"helm package deploy/helm/gpuscaler\" in a clone and install that" (index . 1)) -}}
{{- end -}}
{{- $text -}}
{{- end -}}
