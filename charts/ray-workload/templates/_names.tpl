{{/* The name of the RayCluster, from the upstream chart. Empty if the release has no cluster. */}}
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

{{/* The Secret of the token. The default name is fixed, because the values that refer to it cannot be templates. */}}
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

{{/* Labels that the operator sets on the head pod. */}}
{{- define "ray-workload.headSelector" -}}
ray.io/cluster: {{ include "ray-workload.cluster" . }}
ray.io/node-type: head
{{- end -}}

{{- define "ray-workload.workerSelector" -}}
ray.io/cluster: {{ include "ray-workload.cluster" . }}
ray.io/node-type: worker
{{- end -}}
