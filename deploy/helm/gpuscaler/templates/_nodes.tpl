{{/* "labels" or "selector": what decides which nodes have GPUs (daemonSet.gpuNodes). The operating
system and the architecture say nothing about GPUs. */}}
{{- define "gpuscaler.gpuNodes" -}}
{{- $set := .Values.daemonSet -}}
{{- if ne $set.gpuNodes "auto" -}}
{{- $set.gpuNodes -}}
{{- else -}}
{{- ternary "selector" "labels" (gt (len (omit ($set.nodeSelector | default dict) "kubernetes.io/os" "kubernetes.io/arch")) 0) -}}
{{- end -}}
{{- end -}}

{{/* daemonSet.affinity with "not gpuscaler/paused=true" in each required node term: Kubernetes takes a
node that one term selects. */}}
{{- define "gpuscaler.affinity" -}}
{{- $affinity := deepCopy (.Values.daemonSet.affinity | default dict) -}}
{{- $node := $affinity.nodeAffinity | default dict -}}
{{- $required := $node.requiredDuringSchedulingIgnoredDuringExecution | default dict -}}
{{- $terms := $required.nodeSelectorTerms | default list -}}
{{- if or (eq (include "gpuscaler.gpuNodes" .) "selector") (not $terms) -}}
{{- $terms = list dict -}}
{{- end -}}
{{- $notPaused := dict "key" "gpuscaler/paused" "operator" "NotIn" "values" (list "true") -}}
{{- $new := list -}}
{{- range $terms -}}
{{- $new = append $new (merge (dict "matchExpressions" (append (.matchExpressions | default list) $notPaused)) .) -}}
{{- end -}}
{{- $_ := set $node "requiredDuringSchedulingIgnoredDuringExecution" (dict "nodeSelectorTerms" $new) -}}
{{- $_ := set $affinity "nodeAffinity" $node -}}
{{- toYaml $affinity -}}
{{- end -}}
