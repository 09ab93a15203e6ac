{{/* Lay values over each other, the last on top: maps by key, lists of named things by their name or mountPath, other
     lists end to end. An empty string, list or map changes nothing. Takes a list of maps or of lists; returns JSON. */}}
{{- define "ray-workload.over" -}}
{{- $result := first . -}}
{{- range $over := rest . -}}
  {{- if kindIs "map" $over -}}
    {{- $result = deepCopy $result -}}
    {{- range $key, $value := $over -}}
      {{- $under := get $result $key -}}
      {{- if and (kindIs "map" $under) (kindIs "map" $value) -}}
        {{- $_ := set $result $key (include "ray-workload.over" (list $under $value) | fromJson) -}}
      {{- else if and (kindIs "slice" $under) (kindIs "slice" $value) -}}
        {{- $_ := set $result $key (include "ray-workload.over" (list $under $value) | fromJsonArray) -}}
      {{- else if not (or (has $value (list "" nil)) (and (hasKey $result $key) (has $value (list list dict)))) -}}
        {{- $_ := set $result $key $value -}}
      {{- end -}}
    {{- end -}}
  {{- else if kindIs "slice" $over -}}
    {{- $replaced := dict -}}
    {{- range $over }}{{ $_ := set $replaced (include "ray-workload.identity" .) . }}{{ end -}}
    {{- $base := $result -}}
    {{- $result = list -}}
    {{- range $base -}}
      {{- $identity := include "ray-workload.identity" . -}}
      {{- $result = append $result (get $replaced $identity | default .) -}}
      {{- $_ := unset $replaced $identity -}}
    {{- end -}}
    {{- range $over -}}
      {{- if hasKey $replaced (include "ray-workload.identity" .) }}{{ $result = append $result . }}{{ end -}}
    {{- end -}}
  {{- end -}}
{{- end -}}
{{ toJson $result }}
{{- end -}}

{{- define "ray-workload.identity" -}}
{{- if kindIs "map" . }}{{ .mountPath | default .name | default (toJson .) }}{{ else }}{{ toJson . }}{{ end -}}
{{- end -}}
