#include "settings.h"

pyskip_settings & pyskip_server_settings() {
    static pyskip_settings settings;
    return settings;
}
