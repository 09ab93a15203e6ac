{{/* The RayCluster's name, by upstream's own rule; empty where the release has no cluster. */}}
{{- define "ray-workload.cluster" -}}
{{- with index .Subcharts "ray-cluster" }}{{ include "ray-cluster.fullname" . }}{{ end -}}
{{- end -}}

{{- define "ray-workload.api" -}}
{{ include "ray-workload.cluster" . }}-api
{{- end -}}

{{- define "ray-workload.submitter" -}}
{{ include "ray-workload.cluster" . }}-submitter
{{- end -}}

{{- define "ray-workload.rollout" -}}
{{ include "ray-workload.cluster" . }}-rollout
{{- end -}}

{{- define "ray-workload.cleanup" -}}
{{ include "ray-workload.cluster" . }}-cleanup
{{- end -}}

{{/* The Secret of the token. The chart's own is fixed: the values that refer to it cannot be templates. */}}
{{- define "ray-workload.authSecret" -}}
{{ .Values.auth.existingSecret | default "ray-auth-token" }}
{{- end -}}

{{- define "ray-workload.labels" -}}
app.kubernetes.io/name: ray-workload
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* What the operator puts on the head pod. */}}
{{- define "ray-workload.headSelector" -}}
ray.io/cluster: {{ include "ray-workload.cluster" . }}
ray.io/node-type: head
{{- end -}}

{{- define "ray-workload.workerSelector" -}}
ray.io/cluster: {{ include "ray-workload.cluster" . }}
ray.io/node-type: worker
{{- end -}}
