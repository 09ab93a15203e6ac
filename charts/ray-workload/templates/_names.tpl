{{/* The name of the RayCluster: that of the release. If it does not contain `ray`, `-ray` is appended. Empty if the
     release has no cluster. */}}
{{- define "ray-workload.cluster" -}}
{{- $ray := index .Values "ray-cluster" -}}
{{- if $ray.enabled -}}
  {{- $name := $ray.nameOverride | default "ray" -}}
  {{- $ray.fullnameOverride | default (ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name)) -}}
{{- end -}}
{{- end -}}

{{/* The upstream chart takes its name from here: a parent's definition replaces that of a subchart. The seam sets the
     name. If a helm renders in another order, this installs nothing instead of something open. */}}
{{- define "ray-cluster.fullname" -}}
{{ required "the values of the RayCluster were not computed: use Helm 3 or 4, and do not set ray-cluster to null" .Values.computedName }}
{{- end -}}

{{- define "ray-workload.api" -}}
{{ include "ray-workload.cluster" . }}-api
{{- end -}}

{{- define "ray-workload.submitter" -}}
{{ include "ray-workload.cluster" . }}-submitter
{{- end -}}

{{- define "ray-workload.cleanup" -}}
{{ include "ray-workload.cluster" . }}-cleanup
{{- end -}}

{{- define "ray-workload.authSecret" -}}
{{ .Values.auth.existingSecret | default (printf "%s-auth-token" (include "ray-workload.cluster" .)) }}
{{- end -}}

{{/* The service account of the head or of the workers. Takes (list $ "head"|"worker"). */}}
{{- define "ray-workload.account" -}}
{{ index (index . 0).Values.serviceAccounts (index . 1) "name" | default (printf "%s-%s" (include "ray-workload.cluster" (index . 0)) (index . 1)) }}
{{- end -}}

{{- define "ray-workload.labels" -}}
app.kubernetes.io/name: ray-workload
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* Labels that the operator sets on the head pod. */}}
{{- define "ray-workload.headSelector" -}}
ray.io/cluster: {{ include "ray-workload.cluster" . }}
ray.io/node-type: head
{{- end -}}

{{- define "ray-workload.workerSelector" -}}
ray.io/cluster: {{ include "ray-workload.cluster" . }}
ray.io/node-type: worker
{{- end -}}

{{/* The labels of the upstream chart. Its first use in the template of the RayCluster is that object's own metadata: only
     there the labels of `rayCluster` are added, which must not be on the pods (Kueue would queue each of them). */}}
{{- define "ray-cluster.labels" -}}
helm.sh/chart: {{ include "ray-cluster.chart" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.objectLabels }}
{{ toYaml . }}
{{- end }}
{{- $_ := set .Values "objectLabels" dict -}}
{{- end -}}

{{/* Not empty if Kubernetes has the kind PodMonitoring, or helm renders without a cluster: only a cluster lists kinds. */}}
{{- define "ray-workload.hasPodMonitoring" -}}
{{- if or (.Capabilities.APIVersions.Has "monitoring.googleapis.com/v1/PodMonitoring") (not (.Capabilities.APIVersions.Has "v1/Secret")) }}yes{{ end -}}
{{- end -}}

{{/* Not empty if YAML reads a name as a number, a boolean or null. */}}
{{- define "ray-workload.misread" -}}
{{ regexFind "^([0-9][0-9._]*(e[-+]?[0-9]+)?|0[xob][0-9a-f_]+|true|false|yes|no|on|off|null|y|n)$" . }}
{{- end -}}
