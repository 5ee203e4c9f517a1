{{/* Names are fixed in the namespace, so that scalerAddress is the same wherever the chart is: one
release per namespace. */}}
{{- define "gpuscaler.labels" -}}
app.kubernetes.io/name: gpuscaler
app.kubernetes.io/part-of: gpuscaler
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | quote }}
{{- end -}}

{{/* What pods carry: nothing that changes with the chart's version. */}}
{{- define "gpuscaler.podLabels" -}}
app.kubernetes.io/name: gpuscaler
app.kubernetes.io/part-of: gpuscaler
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}

{{/* For objects of the whole cluster: two releases must not share one. No namespace has a colon. */}}
{{- define "gpuscaler.clusterName" -}}
{{- if eq .Release.Namespace "gpuscaler" }}gpuscaler{{ else }}gpuscaler:{{ .Release.Namespace }}{{ end -}}
{{- end -}}

{{- define "gpuscaler.workloadsName" -}}
{{- if eq .Release.Namespace "gpuscaler" }}gpuscaler-workloads{{ else }}gpuscaler:{{ .Release.Namespace }}:workloads{{ end -}}
{{- end -}}

{{/* Of (list $ "scaler"): which image, and when to pull it if values say so. */}}
{{- define "gpuscaler.image" -}}
{{- $root := index . 0 -}}
{{- $image := index $root.Values.images (index . 1) -}}
{{- $version := printf ":%s" ($image.tag | default $root.Chart.AppVersion) -}}
{{- if $image.digest }}{{ $version = printf "@%s" $image.digest }}{{ end -}}
{{ printf "%s%s" $image.repository $version | quote }}
{{- with $root.Values.images.pullPolicy }}
imagePullPolicy: {{ . }}
{{- end }}
{{- end -}}

{{/* Flags as variables of the environment: --stale-after is GPUSCALER_STALE_AFTER. */}}
{{- define "gpuscaler.flags" -}}
{{- range $flag, $value := . }}
- {name: GPUSCALER_{{ $flag | replace "-" "_" | upper }}, value: {{ $value | toString | quote }}}
{{- end }}
{{- end -}}

{{/* The scaler on a node and the front: what depends on TLS and on the API. */}}
{{- define "gpuscaler.scalerEnv" -}}
{{- if .Values.peers.enabled }}
# The Service below, in the pod's own namespace, by its EndpointSlices: no DNS.
- {name: GPUSCALER_PEERS, value: "kubernetes:///gpuscaler-peers:6001"}
{{- end }}
{{- if .Values.tls.secretName }}
- {name: GPUSCALER_TLS_CERT_FILE, value: /etc/gpuscaler/tls/tls.crt}
- {name: GPUSCALER_TLS_PRIVATE_KEY_FILE, value: /etc/gpuscaler/tls/tls.key}
{{- end }}
{{- if .Values.tls.clientCASecretName }}
- {name: GPUSCALER_CLIENT_CA_FILE, value: /etc/gpuscaler/client-ca/ca.crt}
{{- end }}
{{- if .Values.peerTLS.secretName }}
- {name: GPUSCALER_PEER_TLS_CERT_FILE, value: /etc/gpuscaler/peer-tls/tls.crt}
- {name: GPUSCALER_PEER_TLS_PRIVATE_KEY_FILE, value: /etc/gpuscaler/peer-tls/tls.key}
- {name: GPUSCALER_PEER_CA_FILE, value: /etc/gpuscaler/peer-tls/ca.crt}
{{- end }}
{{- if .Values.profiles }}
- {name: GPUSCALER_PROFILES, value: /etc/gpuscaler/profiles}
{{- end }}
{{- include "gpuscaler.flags" .Values.flags.scaler }}
{{- end -}}

{{- define "gpuscaler.scalerMounts" -}}
{{- if .Values.kubernetes.enabled }}
- name: api-access
  mountPath: /var/run/secrets/kubernetes.io/serviceaccount # where client-go looks
  readOnly: true
{{- end }}
{{- /* Folders: a single file would not be renewed. */ -}}
{{- if .Values.tls.secretName }}
- {name: tls, mountPath: /etc/gpuscaler/tls, readOnly: true}
{{- end }}
{{- if .Values.tls.clientCASecretName }}
- {name: client-ca, mountPath: /etc/gpuscaler/client-ca, readOnly: true}
{{- end }}
{{- if .Values.peerTLS.secretName }}
- {name: peer-tls, mountPath: /etc/gpuscaler/peer-tls, readOnly: true}
{{- end }}
{{- if .Values.profiles }}
- {name: profiles, mountPath: /etc/gpuscaler/profiles, readOnly: true}
{{- end }}
{{- end -}}

{{- define "gpuscaler.scalerVolumes" -}}
{{- if .Values.kubernetes.enabled }}
# What automounting would make, for one container instead of all.
- name: api-access
  projected:
    defaultMode: 0440 # root's, and readable for the group by fsGroup
    sources:
      - serviceAccountToken:
          path: token
          expirationSeconds: 3600 # the kubelet renews it
      - configMap:
          name: kube-root-ca.crt
          items:
            - {key: ca.crt, path: ca.crt}
      - downwardAPI:
          items:
            - {path: namespace, fieldRef: {fieldPath: metadata.namespace}}
{{- end }}
{{- /* Of each Secret what is needed, whatever else it holds. */ -}}
{{- with .Values.tls.secretName }}
- name: tls
  secret:
    secretName: {{ . | quote }}
    defaultMode: 0440
    items:
      - {key: tls.crt, path: tls.crt}
      - {key: tls.key, path: tls.key}
{{- end }}
{{- with .Values.tls.clientCASecretName }}
- name: client-ca
  secret:
    secretName: {{ . | quote }}
    defaultMode: 0440
    items:
      - {key: ca.crt, path: ca.crt}
{{- end }}
{{- with .Values.peerTLS.secretName }}
- name: peer-tls
  secret:
    secretName: {{ . | quote }}
    defaultMode: 0440
    items:
      - {key: tls.crt, path: tls.crt}
      - {key: tls.key, path: tls.key}
      - {key: ca.crt, path: ca.crt}
{{- end }}
{{- if .Values.profiles }}
- name: profiles
  configMap:
    name: gpuscaler-profiles
{{- end }}
{{- end -}}

{{/* "liveness" is SERVING while the process works; the default service asks for readings. The
kubelet's gRPC probes speak no TLS; the HTTP port has the same two answers. */}}
{{- define "gpuscaler.alive" -}}
{{- if .Values.tls.secretName }}
httpGet: {path: /healthz, port: http}
{{- else }}
grpc: {port: 6000, service: liveness}
{{- end }}
{{- end -}}

{{- define "gpuscaler.ready" -}}
{{- if .Values.tls.secretName }}
httpGet: {path: /readyz, port: http}
{{- else }}
grpc: {port: 6000}
{{- end }}
{{- end -}}

{{/* A list of the user's, or nothing. */}}
{{- define "gpuscaler.list" -}}
{{- with . }}{{ toYaml . }}{{ end -}}
{{- end -}}

{{- define "gpuscaler.locked" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}
